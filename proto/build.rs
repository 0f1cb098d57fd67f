//! Compiles the .proto files, in pure Rust, to message types, clients, servers and a descriptor set.

use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=holdfast");
    let mut files = Vec::new();
    proto_files(Path::new("holdfast"), &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("holdfast.binpb"), descriptors.encode_to_vec())?;
    let compiler = tonic_prost_build::configure().codec_path("crate::codec::Frugal");
    compiler.include_file("holdfast.rs").compile_fds(descriptors)?;
    Ok(())
}

fn proto_files(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    Ok(())
}
