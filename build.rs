//! Compiles `proto/` for `crates/ovfleet-proto`, in pure Rust: no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// Messages that `Debug` must not show.
const SECRET_MESSAGES: [&str; 5] = [
    "CredentialsAnswer",
    "PasswordAnswer",
    "NeedStrAnswer",
    "ChallengeResponseAnswer",
    "ExecuteCommandRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo runs this in crates/ovfleet-proto.
    let proto = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", proto.display());
    println!("cargo:rerun-if-changed=../../build.rs");

    let mut files: Vec<PathBuf> = fs::read_dir(proto.join("ovfleet/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "proto")
    });
    files.sort();

    let mut compiler = protox::Compiler::new([&proto])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;
    let descriptors = compiler.file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("ovfleet.v1.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".")
        // A request has to be the same bytes whenever it is encoded: it is known again by them.
        .btree_map(".ovfleet.v1.InstanceDefinition")
        .codec_path("crate::codec::MessageCodec")
        .extern_path(".google.rpc", "::tonic_types")
        .type_attribute(".", "#[allow(clippy::all)]")
        // They hold passwords: `src/lib.rs` writes their `Debug`.
        .skip_debug(SECRET_MESSAGES.map(|name| format!(".ovfleet.v1.{name}")))
        .compile_fds(descriptors)?;
    Ok(())
}
