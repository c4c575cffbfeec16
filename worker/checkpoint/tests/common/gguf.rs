//! Writing small GGUF files.

/// A GGUF file in the making.
pub struct Gguf {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Gguf {
    pub fn new() -> Self {
        Self {
            keys: Vec::new(),
            key_count: 0,
            tensors: Vec::new(),
        }
    }

    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        text(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.key_count += 1;
        &mut self.keys
    }

    pub fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4).extend(value.to_le_bytes());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend(value.to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7).push(value.into());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        text(self.key(key, 8), value);
    }

    pub fn texts(&mut self, key: &str, values: &[&str]) {
        let out = self.key(key, 9);
        out.extend(8u32.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| text(out, value));
    }

    pub fn numbers(&mut self, key: &str, values: &[u32]) {
        let out = self.key(key, 9);
        out.extend(4u32.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }

    /// Give a key another name of the same length.
    pub fn rename(&mut self, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        let at = self
            .keys
            .windows(from.len())
            .position(|window| window == from.as_bytes());
        let at = at.unwrap();
        self.keys[at..at + to.len()].copy_from_slice(to.as_bytes());
    }

    /// An f32 tensor; `dims` in GGUF's order, columns first.
    pub fn tensor(&mut self, name: &str, dims: &[u64], values: Vec<f32>) {
        assert_eq!(dims.iter().product::<u64>(), values.len() as u64);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.stored(name, dims, 0, bytes);
    }

    /// A tensor of ggml's type `code`.
    pub fn stored(&mut self, name: &str, dims: &[u64], code: u32, bytes: Vec<u8>) {
        self.tensors.push((name.to_owned(), dims.to_vec(), code, bytes));
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(&self.keys);
        let mut offset = 0u64;
        for (name, dims, code, bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(code.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (bytes.len() as u64).next_multiple_of(32);
        }
        for (.., bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }
}

/// Sizes of [`tiny`].
pub const HIDDEN: u64 = 16;
pub const HEADS: u64 = 2;
pub const FFN: u64 = 64;
pub const VOCAB: u64 = 6;

/// A Llama of one layer whose weights count up; `head_dim` is 8, there is one kv head.
pub fn tiny() -> Gguf {
    let mut gguf = Gguf::new();
    gguf.text("general.architecture", "llama");
    gguf.number("llama.block_count", 1);
    gguf.number("llama.context_length", 128);
    gguf.number("llama.embedding_length", HIDDEN as u32);
    gguf.number("llama.feed_forward_length", FFN as u32);
    gguf.number("llama.attention.head_count", HEADS as u32);
    gguf.number("llama.attention.head_count_kv", 1);
    gguf.float("llama.rope.freq_base", 500_000.0);
    gguf.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    gguf.text("tokenizer.ggml.model", "gpt2");
    gguf.text("tokenizer.ggml.pre", "llama-bpe");
    gguf.texts(
        "tokenizer.ggml.tokens",
        &["a", "b", "ab", "\u{120}", "<|begin|>", "<|end|>"],
    );
    gguf.numbers("tokenizer.ggml.token_type", &[1, 1, 1, 1, 3, 3]);
    gguf.texts("tokenizer.ggml.merges", &["a b"]);
    gguf.number("tokenizer.ggml.bos_token_id", 4);
    gguf.number("tokenizer.ggml.eos_token_id", 5);
    gguf.flag("tokenizer.ggml.add_bos_token", true);
    gguf.text("tokenizer.chat_template", "{{ messages }}");
    gguf
}

/// Add the tensors of [`tiny`].
pub fn add_tensors(gguf: &mut Gguf, tied: bool) {
    let mut next = 0.0;
    let mut add = |name: &str, cols: u64, rows: Option<u64>| {
        let count = cols * rows.unwrap_or(1);
        // Small integers are exact in bf16.
        let values = (0..count).map(|_| {
            next = (next + 1.0) % 251.0;
            next
        });
        let values = values.collect();
        gguf.tensor(
            name,
            &std::iter::once(cols).chain(rows).collect::<Vec<_>>(),
            values,
        );
    };
    add("token_embd.weight", HIDDEN, Some(VOCAB));
    add("blk.0.attn_norm.weight", HIDDEN, None);
    add("blk.0.attn_q.weight", HIDDEN, Some(HIDDEN));
    add("blk.0.attn_k.weight", HIDDEN, Some(HIDDEN / HEADS));
    add("blk.0.attn_v.weight", HIDDEN, Some(HIDDEN / HEADS));
    add("blk.0.attn_output.weight", HIDDEN, Some(HIDDEN));
    add("blk.0.ffn_norm.weight", HIDDEN, None);
    add("blk.0.ffn_gate.weight", HIDDEN, Some(FFN));
    add("blk.0.ffn_up.weight", HIDDEN, Some(FFN));
    add("blk.0.ffn_down.weight", FFN, Some(HIDDEN));
    add("output_norm.weight", HIDDEN, None);
    if !tied {
        add("output.weight", HIDDEN, Some(VOCAB));
    }
}
