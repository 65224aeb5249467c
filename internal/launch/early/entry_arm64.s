#include "textflag.h"
#include "go_asm.h"

#define SYS_dup3 24
#define SYS_fcntl 25
#define SYS_close 57
#define SYS_pipe2 59
#define SYS_read 63
#define SYS_exit_group 94
#define SYS_setsid 157
#define SYS_clone 220
#define SYS_close_range 436

#define EINTR 4
#define SIGCHLD 17
#define O_CLOEXEC 0x80000
#define F_DUPFD_CLOEXEC 1030

// As in entry_amd64.s, which is the same step by step.
#define DEV_FD 0x2f64662f7665642f
#define PLYFS 0x5f5346594c505f
#define SEVEN 0xffffffffffffff

#define SYSCALL(number) \
	MOVD $number, R8 \
	SVC

// func Entry()
TEXT ·Entry(SB),NOSPLIT|NOFRAME,$0
	MOVD	RSP, R9
	ADD	$8, R9
	MOVD	$DEV_FD, R10
argument:
	MOVD.P	8(R9), R11
	CBZ	R11, environment
	MOVD	(R11), R11
	CMP	R10, R11
	BEQ	start
	B	argument

environment:
	MOVD	$PLYFS, R10
	MOVD	$SEVEN, R12
variable:
	MOVD.P	8(R9), R11
	CBZ	R11, fork
	MOVD	(R11), R11
	AND	R12, R11
	CMP	R10, R11
	BEQ	start
	B	variable

fork:
	MOVD	$0xffffffff, R0
	MOVD	$0xffffffff, R1
	MOVD	ZR, R2
	SYSCALL(SYS_close_range)
	CBNZ	R0, start
	MOVD	$·pipe(SB), R0
	MOVD	$O_CLOEXEC, R1
	SYSCALL(SYS_pipe2)
	CBNZ	R0, start
	MOVW	·pipe(SB), R0
	CMP	$3, R0
	BLT	unpipe
	MOVD	$SIGCHLD, R0
	MOVD	ZR, R1
	MOVD	ZR, R2
	MOVD	ZR, R3
	MOVD	ZR, R4
	SYSCALL(SYS_clone)
	CBZ	R0, child
	CMP	$0, R0
	BGT	parent

unpipe:
	MOVW	·pipe(SB), R0
	SYSCALL(SYS_close)
	MOVW	·pipe+4(SB), R0
	SYSCALL(SYS_close)
start:
	B	_rt0_arm64_linux(SB)

child:
	MOVW	·pipe+4(SB), R0
	MOVD	$const_Report, R1
	MOVD	$O_CLOEXEC, R2
	SYSCALL(SYS_dup3)
	MOVD	$(const_Report+1), R0
	MOVD	$0xffffffff, R1
	MOVD	ZR, R2
	SYSCALL(SYS_close_range)
	SYSCALL(SYS_setsid)
	MOVD	$const_Report, R0
	MOVD	$F_DUPFD_CLOEXEC, R1
	MOVD	$const_Room, R2
	SYSCALL(SYS_fcntl)
	SYSCALL(SYS_close)
	MOVW	$const_roleChild, R1
	MOVW	R1, ·role(SB)
	B	_rt0_arm64_linux(SB)

parent:
	MOVW	R0, ·pid(SB)
	MOVW	·pipe+4(SB), R0
	SYSCALL(SYS_close)
wait:
	MOVW	·pipe(SB), R0
	MOVD	$·verdict(SB), R1
	MOVD	$1, R2
	SYSCALL(SYS_read)
	CMN	$EINTR, R0
	BEQ	wait
	CMP	$1, R0
	BNE	failed
	MOVBU	·verdict(SB), R1
	CBNZ	R1, failed
	MOVD	ZR, R0
	SYSCALL(SYS_exit_group)
failed:
	MOVD	R0, ·got(SB)
	MOVW	$const_roleParent, R1
	MOVW	R1, ·role(SB)
	B	_rt0_arm64_linux(SB)
