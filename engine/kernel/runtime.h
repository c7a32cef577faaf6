// The few parts of ONNX Runtime's C interface that custom operators need.
//
// The interface is a table of functions whose places never change (its API is
// versioned by appending). Only the places are written down here; kernel_test.go
// holds them against the header of the ONNX Runtime binding in use.
#ifndef VIGIE_RUNTIME_H
#define VIGIE_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtSessionOptions OrtSessionOptions;

typedef struct {
	const void *const *(*api)(uint32_t version);
	const char *(*version)(void);
} OrtApiBase;

enum {
	slot_CreateStatus = 0,
	slot_CreateCustomOpDomain = 26,
	slot_CustomOpDomain_Add = 27,
	slot_AddCustomOpDomain = 28,
	slot_GetTensorMutableData = 51,
	slot_GetDimensionsCount = 61,
	slot_GetDimensions = 62,
	slot_GetTensorTypeAndShape = 65,
	slot_KernelInfoGetAttribute_float = 85,
	slot_KernelContext_GetInputCount = 88,
	slot_KernelContext_GetInput = 90,
	slot_KernelContext_GetOutput = 91,
	slot_ReleaseTensorTypeAndShapeInfo = 99,
	slot_KernelInfoGetAttributeArray_int64 = 163,
	slot_KernelInfoGetConstantInput_tensor = 249,
	slot_KernelContext_ParallelFor = 274,
};

enum { type_float = 1, type_uint8 = 2 };
enum { required = 0, optional = 1 };
enum { code_fail = 1 };

// OrtCustomOp of version 17.
typedef struct custom_op {
	uint32_t version;
	void *(*create_without_status)(const struct custom_op *, const void *api, const OrtKernelInfo *);
	const char *(*name)(const struct custom_op *);
	const char *(*provider)(const struct custom_op *);
	int (*input_type)(const struct custom_op *, size_t);
	size_t (*input_count)(const struct custom_op *);
	int (*output_type)(const struct custom_op *, size_t);
	size_t (*output_count)(const struct custom_op *);
	void (*compute_without_status)(void *, OrtKernelContext *);
	void (*destroy)(void *);
	int (*input_characteristic)(const struct custom_op *, size_t);
	int (*output_characteristic)(const struct custom_op *, size_t);
	int (*input_memory)(const struct custom_op *, size_t);
	int (*variadic_input_least)(const struct custom_op *);
	int (*variadic_input_homogeneous)(const struct custom_op *);
	int (*variadic_output_least)(const struct custom_op *);
	int (*variadic_output_homogeneous)(const struct custom_op *);
	OrtStatus *(*create)(const struct custom_op *, const void *api, const OrtKernelInfo *, void **kernel);
	OrtStatus *(*compute)(void *, OrtKernelContext *);
	OrtStatus *(*infer_shape)(const struct custom_op *, void *);
	int (*since)(const struct custom_op *);
	int (*until)(const struct custom_op *);
	void *unused[8];
} custom_op;

#endif
