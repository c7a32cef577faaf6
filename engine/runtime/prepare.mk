# Fetches ONNX Runtime's shared library and packs it where package engine
# embeds it. Included by the Makefile at the root; every path is relative to it.
#
#   make runtime                              for this machine
#   make runtime GOOS=linux GOARCH=arm64      for another one
#
# npm checks the package against the lock file, and the library itself is
# checked against the digest committed beside this file, so that neither a
# registry nor a cache can swap it. Tried on linux/amd64; linux/arm64 and
# darwin/arm64 are packed by the same rule and untried.

RUNTIME_GOOS   ?= $(or $(GOOS),$(shell go env GOOS))
RUNTIME_GOARCH ?= $(or $(GOARCH),$(shell go env GOARCH))
RUNTIME_NAME   := libonnxruntime-$(RUNTIME_GOOS)-$(RUNTIME_GOARCH)
RUNTIME_GZ      = engine/runtime/$(RUNTIME_NAME).$(RUNTIME_SUFFIX).gz
RUNTIME_SUFFIX := $(if $(filter darwin,$(RUNTIME_GOOS)),dylib,so)
RUNTIME_SHA256 := engine/runtime/$(RUNTIME_NAME).sha256
RUNTIME_DIGEST := $(shell command -v sha256sum >/dev/null && echo sha256sum || echo shasum -a 256)

# npm's folder names for the platforms that onnxruntime-node ships.
RUNTIME_FOLDER_linux-amd64  := linux/x64/libonnxruntime.so.1
RUNTIME_FOLDER_linux-arm64  := linux/arm64/libonnxruntime.so.1
RUNTIME_FOLDER_darwin-arm64 := darwin/arm64/libonnxruntime.1.dylib
RUNTIME_LIBRARY = node_modules/onnxruntime-node/bin/napi-v6/$(RUNTIME_FOLDER_$(RUNTIME_GOOS)-$(RUNTIME_GOARCH))

.PHONY: runtime
runtime: $(RUNTIME_GZ) ## fetch and pack ONNX Runtime for embedding

node_modules/.package-lock.json: package.json package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(RUNTIME_GZ): node_modules/.package-lock.json $(wildcard $(RUNTIME_SHA256))
	@test -n '$(RUNTIME_FOLDER_$(RUNTIME_GOOS)-$(RUNTIME_GOARCH))' || \
	  { echo 'onnxruntime-node has no library for $(RUNTIME_GOOS)/$(RUNTIME_GOARCH)' >&2; exit 1; }
	@test "$$($(RUNTIME_DIGEST) $(RUNTIME_LIBRARY) | cut -d' ' -f1)" = "$$(cut -d' ' -f1 $(RUNTIME_SHA256))" || \
	  { echo '$(RUNTIME_LIBRARY) does not have the digest in $(RUNTIME_SHA256): refusing it' >&2; exit 1; }
	gzip -9 -n -c $(RUNTIME_LIBRARY) > node_modules/.$(RUNTIME_NAME).part
	mv node_modules/.$(RUNTIME_NAME).part $@
