//! Builds a second copy of the library, to be loaded into a program that has one already.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::ignore;

/// What cargo says of a target that has no shared libraries, as those of musl.
const NO_SHARED_LIBRARIES: &str = "does not support these crate types";

/// Builds `tests/identity/second_copy/lib.rs` as a shared library, in the target directory.
///
/// An example of type `cdylib` would do, but then no target without shared libraries could build the examples.
pub fn build() -> PathBuf {
    if cfg!(target_feature = "crt-static") {
        ignore("a statically linked program loads no library");
    }
    let Some(cargo) = std::env::var_os("CARGO") else {
        ignore("needs cargo, in CARGO: `cargo test` sets it")
    };
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("second_copy");
    if let Err(error) = write_package(project, &folder) {
        ignore(&format!(
            "needs the project and a target directory to write to: {error}"
        ));
    }

    let mut build = Command::new(cargo);
    build
        .args(["build", "--offline", "--quiet", "--manifest-path"])
        .arg(folder.join("Cargo.toml"));
    build
        .arg("--target-dir")
        .arg(folder.join("target"))
        .current_dir(&folder);
    let mut built = folder.join("target");
    if let Some(target) = cross_target() {
        build.arg("--target").arg(&target);
        built.push(target);
    }
    let output = build
        .output()
        .unwrap_or_else(|error| ignore(&format!("needs cargo: {error}")));
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains(NO_SHARED_LIBRARIES) {
        ignore("needs a target with shared libraries");
    }
    assert!(output.status.success(), "{said}");
    built.join("debug/libsecond_copy.so")
}

fn write_package(project: &Path, folder: &Path) -> std::io::Result<()> {
    let source = project.join("tests/identity/second_copy/lib.rs");
    let source = source.canonicalize()?;
    std::fs::create_dir_all(folder)?;
    // Debug formatting quotes a path as TOML does.
    let manifest = format!(
        "[package]\nname = \"second_copy\"\nedition = \"2024\"\n\n[lib]\npath = {source:?}\ncrate-type = [\"cdylib\"]\n\n\
         [dependencies]\nprivilege-guard = {{ path = {project:?} }}\n\n[workspace]\n"
    );
    std::fs::write(folder.join("Cargo.toml"), manifest)?;
    // The versions that are there already, so that nothing is downloaded.
    match std::fs::copy(project.join("Cargo.lock"), folder.join("Cargo.lock")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The target of this test, if cargo was given one: `target/<target>/debug/deps/<test>` in place of `target/debug/deps/<test>`.
fn cross_target() -> Option<String> {
    let test = std::env::current_exe().ok()?;
    let parent = test.ancestors().nth(3)?;
    let of_the_host = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    (parent != of_the_host).then(|| parent.file_name()?.to_str().map(String::from))?
}
