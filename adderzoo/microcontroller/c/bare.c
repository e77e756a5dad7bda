/* What a program needs where there is no operating system: a start, `puts` and an end, by semihosting on Arm's Cortex-M
   and by the devices of qemu's "virt" machine on RISC-V. It is for the test under qemu; a board brings its own. */

#include <stdint.h>

int main(void);
int puts(const char* text);
void start(void);

#if defined(__arm__)

static int semihosting(int operation, const void* argument) {
  register int r0 __asm__("r0") = operation;
  register const void* r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt #0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

int puts(const char* text) {
  semihosting(0x04, text); /* SYS_WRITE0 */
  semihosting(0x04, "\n");
  return 0;
}

static void leave(int status) {
  const uint32_t block[2] = {0x20026u, (uint32_t)status}; /* ADP_Stopped_ApplicationExit */
  semihosting(0x20, block);                               /* SYS_EXIT_EXTENDED */
}

__asm__(".section .vectors, \"a\"\n\t.word stack_top\n\t.word start\n\t.previous");

void start(void) {
#if defined(__ARM_FP)
  *(volatile uint32_t*)0xe000ed88u |= 0xfu << 20; /* CPACR: the compiler may use the floating-point registers */
  __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
  leave(main());
  for (;;) {
  }
}

#else

int puts(const char* text) {
  volatile uint8_t* const uart = (volatile uint8_t*)0x10000000;
  while (*text != 0) {
    *uart = (uint8_t)*text++;
  }
  *uart = '\n';
  return 0;
}

__attribute__((section(".vectors"), naked, used)) void start(void) {
  __asm__(
      "la sp, stack_top\n\tcall main\n\t"
      "slli a0, a0, 16\n\tli t0, 0x3333\n\tor t0, t0, a0\n\tbnez a0, 1f\n\tli t0, 0x5555\n"
      "1:\tli t1, 0x100000\n\tsw t0, 0(t1)\n2:\tj 2b");
}

#endif
