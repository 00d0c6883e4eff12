/* Preloaded into a process on Linux and x86-64, it hides AVX-512, VNNI and AMX from all that asks this CPU what it has.
 *
 *     cc -O1 -shared -fPIC -o without_avx512.so without_avx512.c -ldl
 *     LD_PRELOAD=./without_avx512.so python ...
 *
 * arch_prctl(ARCH_SET_CPUID, 0) makes every CPUID instruction fault (arch_prctl(2)); the answers are given here, less
 * those bits. Programs see a CPU of AVX2 and use the kernels that they have for one. Exit code 77 if this CPU, or its
 * virtual machine, cannot do that. Bits: Intel SDM volume 2A, CPUID, leaf 7.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(number) (1u << (number))

typedef int setter(int, const struct sigaction *, struct sigaction *);

static struct sigaction others; /* what the program wants to happen on a real fault */

static int set(const struct sigaction *action) {
    return ((setter *)dlsym(RTLD_NEXT, "sigaction"))(SIGSEGV, action, NULL);
}

static void answer(greg_t *registers) {
    unsigned leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(leaf), "2"(part));
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    if (leaf == 7 && part == 0) {
        b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
        c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                 /* VBMI, VNNI, BITALG */
        d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));              /* FP16, AMX */
    }
    if (leaf == 7 && part == 1) {
        a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI, bfloat16, AMX-FP16, AVX-IFMA */
        d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19)); /* AVX-VNNI-INT8, -NE-CONVERT, -INT16, AVX10 */
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    (void)number;
    if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) { /* cpuid */
        answer(registers);
        registers[REG_RIP] += 2;
    } else {
        set(&others); /* and the instruction is tried once more */
    }
}

/* faulthandler and compilers set handlers of their own for this signal, which must not replace ours. */
int sigaction(int number, const struct sigaction *action, struct sigaction *before) {
    if (number != SIGSEGV) return ((setter *)dlsym(RTLD_NEXT, "sigaction"))(number, action, before);
    if (before) *before = others;
    if (action) others = *action;
    return 0;
}

void (*signal(int number, void (*handler)(int)))(int) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, before;
    return sigaction(number, &action, &before) ? SIG_ERR : before.sa_handler;
}

__attribute__((constructor)) static void hide(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    set(&action);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) _exit(77);
}
