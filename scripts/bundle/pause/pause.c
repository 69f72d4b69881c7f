// pause is the first process of every pod: it holds the pod's namespaces, collects the exit codes of orphans and ends on request.
//
// It uses no C library, so that hundreds of pods cost a few kilobytes each. The signals are blocked and then taken one by one with
// rt_sigtimedwait: nothing can interrupt, so there is no handler and no race. A blocked signal is queued even for process 1, for
// which the kernel would drop a signal without a handler.

#if defined(__x86_64__)
enum { SYS_sigprocmask = 14, SYS_exit = 60, SYS_wait4 = 61, SYS_sigtimedwait = 128 };

static long call4(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
enum { SYS_sigprocmask = 135, SYS_exit = 93, SYS_wait4 = 260, SYS_sigtimedwait = 137 };

static long call4(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory", "cc");
	return x0;
}
#else
#error "pause: this architecture has no system calls here yet"
#endif

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, WNOHANG = 1, SIGSET_BYTES = 8 };

// Not inlined into the entry point, which need not have an aligned stack.
__attribute__((noinline, used, noreturn)) static void hold(void)
{
	unsigned long wanted = 1UL << (SIGINT - 1) | 1UL << (SIGTERM - 1) | 1UL << (SIGCHLD - 1);

	call4(SYS_sigprocmask, SIG_BLOCK, (long)&wanted, 0, SIGSET_BYTES);
	for (;;) {
		long signal = call4(SYS_sigtimedwait, (long)&wanted, 0, 0, SIGSET_BYTES);

		if (signal == SIGINT || signal == SIGTERM)
			for (;;)
				call4(SYS_exit, 0, 0, 0, 0);
		// One SIGCHLD may stand for many children: collect until none is left.
		while (call4(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
			;
	}
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall hold\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tbl hold\n");
#endif
