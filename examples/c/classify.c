/* Read samples, 64 floats each, and print the class of each. */
#include "digits.h"
#include "print.h"

int main(void)
{
    static float sample[DIGITS_INPUTS];
    static int8_t input[DIGITS_INPUTS], output[DIGITS_OUTPUTS];

    while (fread(sample, sizeof sample, 1, stdin) == 1) {
        unsigned best = 0;
        digits_quantize(sample, input); /* a sensor of integers needs no floats: DIGITS_INPUT_SCALE, DIGITS_INPUT_ZERO */
        digits_predict(input, output);
        for (unsigned i = 1; i < DIGITS_OUTPUTS; ++i) {
            best = output[i] > output[best] ? i : best;
        }
        print(best, '\n');
    }
    return 0;
}
