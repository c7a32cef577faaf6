#include "textflag.h"

// func addNumbers(dst *uint32, src *byte, n int)
// n is a multiple of 16.
TEXT ·addNumbers(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	SHRQ $4, CX
	JZ   done

loop:
	MOVOU (DI), X0
	MOVOU 16(DI), X1
	MOVOU 32(DI), X2
	MOVOU 48(DI), X3
	MOVOU (SI), X4
	MOVOU 16(SI), X5
	MOVOU 32(SI), X6
	MOVOU 48(SI), X7
	PADDL X4, X0
	PADDL X5, X1
	PADDL X6, X2
	PADDL X7, X3
	MOVOU X0, (DI)
	MOVOU X1, 16(DI)
	MOVOU X2, 32(DI)
	MOVOU X3, 48(DI)
	ADDQ $64, DI
	ADDQ $64, SI
	DECQ CX
	JNZ  loop

done:
	RET

// func subtractNumbers(dst *uint32, src *byte, n int)
// n is a multiple of 16.
TEXT ·subtractNumbers(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	SHRQ $4, CX
	JZ   done

loop:
	MOVOU (DI), X0
	MOVOU 16(DI), X1
	MOVOU 32(DI), X2
	MOVOU 48(DI), X3
	MOVOU (SI), X4
	MOVOU 16(SI), X5
	MOVOU 32(SI), X6
	MOVOU 48(SI), X7
	PSUBL X4, X0
	PSUBL X5, X1
	PSUBL X6, X2
	PSUBL X7, X3
	MOVOU X0, (DI)
	MOVOU X1, 16(DI)
	MOVOU X2, 32(DI)
	MOVOU X3, 48(DI)
	ADDQ $64, DI
	ADDQ $64, SI
	DECQ CX
	JNZ  loop

done:
	RET

// func addCarries(low *uint32, high *uint16, src *uint32, n int)
// n is a multiple of 8.
TEXT ·addCarries(SB), NOSPLIT, $0-32
	MOVQ low+0(FP), DI
	MOVQ high+8(FP), DX
	MOVQ src+16(FP), SI
	MOVQ n+24(FP), CX
	SHRQ $3, CX
	JZ   done
	PCMPEQL X7, X7
	PSLLL   $31, X7 // the sign bits: unsigned numbers are compared as signed ones

loop:
	MOVOU (DI), X0
	MOVOU 16(DI), X1
	MOVOU (SI), X2
	MOVOU 16(SI), X3
	MOVOU (DX), X4
	PADDL X2, X0
	PADDL X3, X1
	MOVOU X0, (DI)
	MOVOU X1, 16(DI)
	PXOR  X7, X0
	PXOR  X7, X1
	PXOR  X7, X2
	PXOR  X7, X3
	PCMPGTL X0, X2 // −1 where the sum is smaller than what was added: a carry
	PCMPGTL X1, X3
	PACKSSLW X3, X2
	PSUBW X2, X4
	MOVOU X4, (DX)
	ADDQ $32, DI
	ADDQ $32, SI
	ADDQ $16, DX
	DECQ CX
	JNZ  loop

done:
	RET
