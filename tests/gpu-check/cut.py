#!/usr/bin/env python3
"""Cut a checkpoint to its first layers and token ids: `cut.py FROM TO LAYERS IDS`. Only for checks: the model says nothing sensible."""
import json
import os
import struct
import sys

source, target, layers, ids = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.makedirs(target, exist_ok=True)
with open(f"{source}/config.json") as file:
    config = json.load(file)
vocabulary = config["vocab_size"]
config.update(num_hidden_layers=layers, vocab_size=ids)
with open(f"{target}/config.json", "w") as file:
    json.dump(config, file)


def is_kept(name):
    parts = name.split(".")
    return parts[1] != "layers" or int(parts[2]) < layers


with open(f"{source}/model.safetensors", "rb") as file:
    length = struct.unpack("<Q", file.read(8))[0]
    tensors = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    header, parts, end = {}, [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        if not is_kept(name):
            continue
        start, stop = tensor["data_offsets"]
        shape, size = list(tensor["shape"]), stop - start
        if shape[0] == vocabulary:
            size, shape[0] = size // vocabulary * ids, ids
        file.seek(8 + length + start)
        parts.append(file.read(size))
        header[name] = {"dtype": tensor["dtype"], "shape": shape, "data_offsets": [end, end + size]}
        end += size
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(f"{target}/model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))
