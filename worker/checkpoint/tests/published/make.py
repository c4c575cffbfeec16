#!/usr/bin/env python3
"""Write the configuration files of Llama 3.1 and 3.2 checkpoints as their publishers ship them, one JSON a checkpoint.

Sizes are the true ones; tests/published.rs shrinks them and gives them random weights in the publisher's layout.
Lists of modules, scales and versions follow the model cards, the writers' sources (transformers, compressed-tensors,
AutoFP8, modelopt) and vLLM's readers. `tokenizer_config.json` lacks the table of added tokens, which nothing here reads.
"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent
ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
EOS = [128001, 128008, 128009]
GENERATION = {
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": EOS,
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.42.3",
}
TOKENIZER = {
    "bos_token": "<|begin_of_text|>",
    "clean_up_tokenization_spaces": True,
    "eos_token": "<|eot_id|>",
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 131072,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
# Hidden size, layers, query heads, width of the feed-forward layer.
SIZE_8B = (4096, 32, 32, 14336)
SIZE_70B = (8192, 80, 64, 28672)
SIZE_405B = (16384, 126, 128, 53248)
SIZE_1B = (2048, 16, 32, 8192)
SIZE_3B = (3072, 28, 24, 8192)
ABSENT = object()


def config(size, version, **changes):
    hidden, layers, heads, ffn = size
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": ROPE,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": version,
        "use_cache": True,
        "vocab_size": 128256,
    }
    fields.update(changes)
    return {name: fields[name] for name in sorted(fields) if fields[name] is not ABSENT}


def float8(strategy, dynamic, observer):
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": None,
        "num_bits": 8,
        "observer": observer,
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": True,
        "type": "float",
    }


def compressed_tensors(weights, activations, ignore, **more):
    group = {"input_activations": activations, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group},
        "format": "float-quantized",
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        **more,
    }


def left_by_meta(layers):
    attention = [f"self_attn.{name}_proj" for name in "koqv"]
    whole = attention + [f"mlp.{name}_proj" for name in ["down", "gate", "up"]]
    leaves = lambda layer: whole if layer in (0, layers - 1) else attention
    return ["lm_head"] + [f"model.layers.{layer}.{leaf}" for layer in range(layers) for leaf in leaves(layer)]


def checkpoints():
    yield "meta-8b", config(SIZE_8B, "4.42.3"), {}
    yield "meta-70b", config(SIZE_70B, "4.42.3"), {}
    # 3.2: one table serves as embedding and as head, and positions are scaled by 32.
    for name, size, head_dim in (("meta-3.2-1b", SIZE_1B, 64), ("meta-3.2-3b", SIZE_3B, 128)):
        yield name, config(
            size,
            "4.45.0.dev0",
            head_dim=head_dim,
            rope_scaling={**ROPE, "factor": 32.0},
            tie_word_embeddings=True,
        ), {}
    yield "meta-405b-fp8", config(
        SIZE_405B,
        "4.43.0.dev0",
        quantization_config={
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": left_by_meta(126),
            "quant_method": "fbgemm_fp8",
        },
    ), {}
    dense = {
        "format": "dense",
        "global_sparsity": 0.14,
        "ignore": [],
        "registry_requires_subclass": False,
        "sparsity_structure": "unstructured",
        "targets": [],
    }
    yield "redhat-70b-fp8-dynamic", config(
        SIZE_70B,
        "4.44.0",
        head_dim=128,
        quantization_config=compressed_tensors(
            float8("channel", False, "minmax"),
            float8("token", True, None),
            ["re:.*lm_head"],
            global_compression_ratio=1.5,
            sparsity_config=dense,
            transform_config={},
            version="0.10.2",
        ),
    ), {}
    yield "neuralmagic-8b-fp8", config(
        SIZE_8B,
        "4.43.1",
        quantization_config=compressed_tensors(
            float8("tensor", False, "minmax"), float8("tensor", False, "minmax"), ["lm_head"]
        ),
    ), {}
    yield "nvidia-8b-fp8", config(SIZE_8B, "4.43.3"), {
        "hf_quant_config.json": {
            "producer": {"name": "modelopt", "version": "0.15.1"},
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
        }
    }
    # Llama 3, not 3.1: no scaling of the frequencies, one end token in config.json and two in generation_config.json.
    yield "autofp8-8b-static", config(
        SIZE_8B,
        "4.40.0",
        eos_token_id=128001,
        max_position_embeddings=8192,
        mlp_bias=ABSENT,
        rope_scaling=None,
        quantization_config={"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
    ), {
        "generation_config.json": {
            **GENERATION,
            "eos_token_id": [128001, 128009],
            "max_length": 4096,
            "transformers_version": "4.40.0",
        }
    }
    yield "transformers5-8b-fp8-dynamic", config(
        SIZE_8B,
        "5.2.0",
        dtype="bfloat16",
        head_dim=128,
        rope_parameters={**ROPE, "rope_theta": 500000.0},
        rope_scaling=ABSENT,
        rope_theta=ABSENT,
        torch_dtype=ABSENT,
        quantization_config={
            "activation_scheme": "dynamic",
            "dequantize": False,
            "modules_to_not_convert": ["lm_head"],
            "quant_method": "fp8",
            "weight_block_size": None,
        },
    ), {}
    yield "transformers-8b-fp8-blocks", config(
        SIZE_8B,
        "4.57.0",
        head_dim=128,
        quantization_config={
            "activation_scheme": "dynamic",
            "modules_to_not_convert": ["lm_head"],
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
    ), {}


def main():
    for name, fields, others in checkpoints():
        files = {
            "config.json": fields,
            "generation_config.json": GENERATION,
            "tokenizer_config.json": TOKENIZER,
            **others,
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(files, indent=1) + "\n")


if __name__ == "__main__":
    main()
