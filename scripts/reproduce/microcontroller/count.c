/* A plugin for qemu that counts the instructions a program executes, by address.

   gcc -shared -fPIC -O2 count.c -o libcount.so
   qemu-system-arm ... -plugin ./libcount.so,base=0,size=0x100000,out=counts.txt

   `out` gets a line for every address that was executed: the address, and how often. Debian's qemu has no header for
   plugins; what is used of the interface, version 1, is declared here. */

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
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, translated callback);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, ended callback, void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* block, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn* instruction);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn* instruction, int operation, void* number,
                                                uint64_t addend);

EXPORT int qemu_plugin_version = 1;

static uint64_t base, size = 0x100000;
static const char* out = "counts.txt";
static uint64_t* counts;

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  for (size_t index = 0; index < qemu_plugin_tb_n_insns(block); index++) {
    struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(block, index);
    const uint64_t offset = qemu_plugin_insn_vaddr(instruction) - base;
    if (offset < size) {
      qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &counts[offset / 2], 1); /* 0 is ADD_U64 */
    }
  }
}

static void end(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  FILE* file = fopen(out, "w");
  for (uint64_t offset = 0; file != NULL && offset < size; offset += 2) {
    if (counts[offset / 2] != 0) {
      fprintf(file, "%" PRIx64 " %" PRIu64 "\n", base + offset, counts[offset / 2]);
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
    } else if (strncmp(argv[index], "out=", 4) == 0) {
      out = strdup(argv[index] + 4);
    } else {
      fprintf(stderr, "count: unknown argument %s\n", argv[index]);
      return 1;
    }
  }
  counts = calloc(size / 2, sizeof *counts);
  if (counts == NULL) {
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_atexit_cb(id, end, NULL);
  return 0;
}
