/* TestU01 on words of standard input: see prng_battery.py for how to build and run.
 *
 *   ./testu01 small_crush | crush | big_crush
 *   ./testu01 rabbit | alphabit LOG2_BITS
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <testu01/bbattery.h>
#include <testu01/swrite.h>
#include <testu01/unif01.h>

static unsigned int word(void) {
  static uint32_t words[1 << 16];
  static size_t next, count;
  if (next == count) {
    count = fread(words, sizeof *words, 1 << 16, stdin);
    next = 0;
    if (count == 0) {
      fprintf(stderr, "the stream is too short for this battery\n");
      exit(1);
    }
  }
  return words[next++];
}

int main(int argc, char **argv) {
  unif01_Gen *generator = unif01_CreateExternGenBits("standard input", word);
  const char *battery = argc > 1 ? argv[1] : "";
  double bits = argc > 2 ? (double)(1ull << atoi(argv[2])) : 0;
  swrite_Basic = FALSE;
  if (!strcmp(battery, "small_crush")) bbattery_SmallCrush(generator);
  else if (!strcmp(battery, "crush")) bbattery_Crush(generator);
  else if (!strcmp(battery, "big_crush")) bbattery_BigCrush(generator);
  else if (!strcmp(battery, "rabbit") && bits) bbattery_Rabbit(generator, bits);
  else if (!strcmp(battery, "alphabit") && bits)
    bbattery_Alphabit(generator, bits, 0, 32);
  else return fprintf(stderr, "unknown battery: %s\n", battery), 2;
  return 0;
}
