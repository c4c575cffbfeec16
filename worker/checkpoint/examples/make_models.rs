//! Convert a GGUF file and quantise the result: `make_models GGUF BF16_FOLDER FP8_FOLDER`.

use std::path::PathBuf;
use std::time::Instant;

use llamero_checkpoint::convert::{ConvertOptions, gguf_to_hugging_face};
use llamero_checkpoint::quantize::{QuantizeOptions, to_fbgemm_fp8};

fn main() -> anyhow::Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [gguf, plain, fp8] = paths.as_slice() else {
        anyhow::bail!("usage: make_models GGUF BF16_FOLDER FP8_FOLDER");
    };
    let start = Instant::now();
    gguf_to_hugging_face(gguf, plain, ConvertOptions::default(), &mut |_| ())?;
    println!("{} in {:.1?}", plain.display(), start.elapsed());
    let start = Instant::now();
    to_fbgemm_fp8(plain, fp8, &QuantizeOptions::default(), &mut |_| ())?;
    println!("{} in {:.1?}", fp8.display(), start.elapsed());
    Ok(())
}
