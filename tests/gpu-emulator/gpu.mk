.PHONY: gpu-toolchain test-gpu
gpu-toolchain: ## Install NVIDIA's run-time compiler, which needs no GPU
	@tests/gpu-emulator/toolchain.sh

test-gpu: ## Test the CUDA worker on the emulated driver
	@tests/gpu-emulator/test.sh

.PHONY: gpu-check
gpu-check: ## Build the folder that checks the CUDA worker on a real GPU
	@tests/gpu-check/build.sh
