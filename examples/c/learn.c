/* Read labelled samples, 64 floats and an int32 each, say what each is, then learn from it. Print after every 1,000
   how many samples there were, and how many of these 1,000 were right. */
#include "learner.h"
#include "print.h"

enum { EVERY = 1000 };

int main(void)
{
    static struct {
        float x[LEARNER_INPUTS];
        int32_t label;
    } sample;
    static float inputs[LEARNER_BATCH * LEARNER_INPUTS], output[LEARNER_OUTPUTS];
    static int labels[LEARNER_BATCH];
    unsigned seen = 0, right = 0, filled = 0;

    while (fread(&sample, sizeof sample, 1, stdin) == 1) {
        int best = 0;
        learner_predict(sample.x, output);
        for (int i = 1; i < LEARNER_OUTPUTS; ++i) {
            best = output[i] > output[best] ? i : best;
        }
        right += best == sample.label;
        for (unsigned i = 0; i < LEARNER_INPUTS; ++i) {
            inputs[filled * LEARNER_INPUTS + i] = sample.x[i];
        }
        labels[filled++] = (int)sample.label;
        if (filled == LEARNER_BATCH) {
            learner_train_step(inputs, labels, LEARNER_BATCH, 0.05f);
            filled = 0;
        }
        if (++seen % EVERY == 0) {
            print(seen, ' ');
            print(right, '\n');
            right = 0;
            learner_rewire(0.2f, seen);
        }
    }
    return 0;
}
