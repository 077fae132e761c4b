//! Compiles `src/dafs.proto`, in Rust alone: building needs no `protoc` on the machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/dafs.proto");
    let files = protox::compile(["src/dafs.proto"], ["src"])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
