/* A plugin for qemu that counts the instructions a program executes, by address.

   gcc -shared -fPIC -O2 count.c -o libcount.so
   qemu-system-arm ... -plugin ./libcount.so,base=0,size=0x100000,out=counts.txt

   `out` gets a line for every address that was executed: the address, and how often. With function=BEGIN:END, which may
   be given some times, addresses in these functions get a third number: the instructions from there until one of these
   functions goes on, so those of what they call. Debian's qemu has no header for plugins; what is used of the
   interface, version 1, is declared here. */

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t qemu_plugin_id_t;
typedef void (*translated)(qemu_plugin_id_t id, struct qemu_plugin_tb* block);
typedef void (*ended)(qemu_plugin_id_t id, void* data);
typedef void (*executed)(unsigned int processor, void* data);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, translated callback);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, ended callback, void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* block, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn* instruction);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn* instruction, int operation, void* number,
                                                uint64_t addend);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn* instruction, executed callback, int registers,
                                            void* data);

EXPORT int qemu_plugin_version = 1;

static uint64_t base, size = 0x100000;
static uint64_t begins[8], ends[8];
static int functions;
static const char* out = "counts.txt";
static uint64_t *counts, *spent; /* of an address, that divided by two */
static uint64_t total, before;
static uint64_t* current;

static bool is_in_a_function(uint64_t address) {
  for (int index = 0; index < functions; index++) {
    if (address >= begins[index] && address < ends[index]) {
      return true;
    }
  }
  return false;
}

static void inside(unsigned int processor, void* data) {
  (void)processor;
  *current += total - before;
  before = total;
  current = data;
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  for (size_t index = 0; index < qemu_plugin_tb_n_insns(block); index++) {
    struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(block, index);
    const uint64_t offset = qemu_plugin_insn_vaddr(instruction) - base;
    if (offset >= size) {
      continue;
    }
    if (is_in_a_function(base + offset)) {
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, inside, 0, &spent[offset / 2]);
    }
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &counts[offset / 2], 1); /* 0 is ADD_U64 */
    if (functions != 0) {
      qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &total, 1);
    }
  }
}

static void end(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  FILE* file = fopen(out, "w");
  for (uint64_t offset = 0; file != NULL && offset < size; offset += 2) {
    if (counts[offset / 2] != 0) {
      fprintf(file, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", base + offset, counts[offset / 2], spent[offset / 2]);
    }
  }
  if (file == NULL || fclose(file) != 0) {
    perror(out);
    exit(1);
  }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int argc, char** argv) {
  (void)info;
  for (int index = 0; index < argc; index++) {
    if (strncmp(argv[index], "base=", 5) == 0) {
      base = strtoull(argv[index] + 5, NULL, 0);
    } else if (strncmp(argv[index], "size=", 5) == 0) {
      size = strtoull(argv[index] + 5, NULL, 0);
    } else if (strncmp(argv[index], "function=", 9) == 0 && functions < 8) {
      char* rest;
      begins[functions] = strtoull(argv[index] + 9, &rest, 0);
      ends[functions++] = strtoull(rest + 1, NULL, 0);
    } else if (strncmp(argv[index], "out=", 4) == 0) {
      out = strdup(argv[index] + 4);
    } else {
      fprintf(stderr, "count: unknown argument %s\n", argv[index]);
      return 1;
    }
  }
  counts = calloc(size / 2, sizeof *counts);
  spent = calloc(size / 2 + 1, sizeof *spent);
  if (counts == NULL || spent == NULL) {
    return 1;
  }
  current = &spent[size / 2]; /* of what comes before */
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_atexit_cb(id, end, NULL);
  return 0;
}
