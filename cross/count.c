/* Counts the instructions that an emulated program executes: a plugin for qemu-user, whose
 * interface (docs/devel/tcg-plugins, version 1, qemu 4.2 to 8.2) is declared here because Debian
 * ships no header of it. At the end of the program the sum goes to standard error. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
extern void qemu_plugin_register_vcpu_tb_trans_cb(
    plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *, void (*)(unsigned, void *), int flags, void *);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* One counter a thread, each in a cache line of its own: threads beyond that share. */
enum { THREADS = 1024 };
static struct { _Alignas(64) uint64_t instructions; } counters[THREADS];

static void executed(unsigned thread, void *instructions) {
    counters[thread % THREADS].instructions += (uintptr_t)instructions;
}

/* Blocks are translated once; the number is bound to each. */
static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    void *instructions = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, instructions);
}

static void ended(plugin_id id, void *nothing) {
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++)
        sum += counters[i].instructions;
    fprintf(stderr, "instructions: %" PRIu64 "\n", sum);
}

__attribute__((visibility("default"))) int qemu_plugin_install(
    plugin_id id, const void *info, int count, char **arguments) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
