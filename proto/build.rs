//! Compiles `src/dafs.proto`, in Rust alone: building needs no `protoc` on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/dafs.proto");
    let files = protox::compile(["src/dafs.proto"], ["src"])?;
    // Its Debug is written by hand and does not show the secret.
    prost_build::Config::new().skip_debug([".dafs.v1.FileKey"]).compile_fds(files)?;
    Ok(())
}
