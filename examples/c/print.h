/* A number and a character, without the kilobytes of printf. */
#include <stdio.h>

static void print(unsigned number, char after)
{
    char text[12];
    size_t at = sizeof text;
    text[--at] = after;
    do {
        text[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    fwrite(text + at, 1, sizeof text - at, stdout);
}
