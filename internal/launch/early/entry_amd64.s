#include "textflag.h"
#include "go_asm.h"

#define SYS_read 0
#define SYS_close 3
#define SYS_clone 56
#define SYS_fcntl 72
#define SYS_setsid 112
#define SYS_exit_group 231
#define SYS_dup3 292
#define SYS_pipe2 293
#define SYS_close_range 436

#define EINTR 4
#define SIGCHLD 17
#define O_CLOEXEC 0x80000
#define F_DUPFD_CLOEXEC 1030

// The first eight bytes of /dev/fd/N, and the first seven of the variables of this program, as numbers.
#define DEV_FD 0x2f64662f7665642f
#define PLYFS 0x5f5346594c505f
#define SEVEN 0xffffffffffffff

// The registers that a system call keeps are as good as variables here, and nothing is pushed: the stack belongs to whoever goes on.
// Eight bytes can be read of any string: behind the last one there are the program's name and a word of zeros (cf. Linux
// fs/exec.c bprm_mm_init).

// func Entry()
TEXT ·Entry(SB),NOSPLIT|NOFRAME,$0
	LEAQ	8(SP), BX // argv, and behind its end the environment
	MOVQ	$DEV_FD, DX
argument:
	MOVQ	(BX), CX
	ADDQ	$8, BX
	TESTQ	CX, CX
	JEQ	environment
	CMPQ	(CX), DX
	JEQ	start
	JMP	argument

environment:
	MOVQ	$PLYFS, DX
	MOVQ	$SEVEN, SI
variable:
	MOVQ	(BX), CX
	ADDQ	$8, BX
	TESTQ	CX, CX
	JEQ	fork
	MOVQ	(CX), CX
	ANDQ	SI, CX
	CMPQ	CX, DX
	JEQ	start
	JMP	variable

fork:
	// Without close_range, or with a standard file closed, the long way is right.
	MOVL	$0xffffffff, DI
	MOVL	$0xffffffff, SI
	XORL	DX, DX
	MOVL	$SYS_close_range, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	start
	LEAQ	·pipe(SB), DI
	MOVL	$O_CLOEXEC, SI
	MOVL	$SYS_pipe2, AX
	SYSCALL
	TESTQ	AX, AX
	JNE	start
	CMPL	·pipe(SB), $3
	JLT	unpipe
	MOVL	$SIGCHLD, DI
	XORL	SI, SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$SYS_clone, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	JGT	parent

unpipe:
	MOVL	·pipe(SB), DI
	MOVL	$SYS_close, AX
	SYSCALL
	MOVL	·pipe+4(SB), DI
	MOVL	$SYS_close, AX
	SYSCALL
start:
	JMP	_rt0_amd64_linux(SB)

child:
	MOVL	·pipe+4(SB), DI
	MOVL	$const_Report, SI
	MOVL	$O_CLOEXEC, DX
	MOVL	$SYS_dup3, AX
	SYSCALL // to no effect if it has that number already
	MOVL	$(const_Report+1), DI
	MOVL	$0xffffffff, SI
	XORL	DX, DX
	MOVL	$SYS_close_range, AX
	SYSCALL
	MOVL	$SYS_setsid, AX
	SYSCALL
	MOVL	$const_Report, DI
	MOVL	$F_DUPFD_CLOEXEC, SI
	MOVL	$const_Room, DX
	MOVL	$SYS_fcntl, AX
	SYSCALL
	MOVL	AX, DI // an error is no descriptor's number
	MOVL	$SYS_close, AX
	SYSCALL
	MOVL	$const_roleChild, ·role(SB)
	JMP	_rt0_amd64_linux(SB)

parent:
	MOVL	AX, ·pid(SB)
	MOVL	·pipe+4(SB), DI
	MOVL	$SYS_close, AX
	SYSCALL
wait:
	MOVL	·pipe(SB), DI
	LEAQ	·verdict(SB), SI
	MOVL	$1, DX
	MOVL	$SYS_read, AX
	SYSCALL
	CMPQ	AX, $-EINTR
	JEQ	wait
	CMPQ	AX, $1
	JNE	failed
	CMPB	·verdict(SB), $0
	JNE	failed
	XORL	DI, DI
	MOVL	$SYS_exit_group, AX
	SYSCALL
failed:
	MOVQ	AX, ·got(SB)
	MOVL	$const_roleParent, ·role(SB)
	JMP	_rt0_amd64_linux(SB)
