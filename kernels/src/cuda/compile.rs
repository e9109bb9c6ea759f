//! From a specialisation to a loaded function: NVRTC, and two caches of what it made.
//!
//! Cubins are kept in the user's cache directory under a hash of source, options, architecture and NVRTC version, so
//! that a new source or compiler never meets an old cubin. Loaded functions are kept for the life of the process.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaModule};
use candle_core::cuda_backend::cudarc::nvrtc::{Ptx, result, sys};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Result, bail};

use super::Specialisation;

type Functions = HashMap<(usize, String), CudaFunction>;

static LOADED: LazyLock<Mutex<Functions>> = LazyLock::new(Mutex::default);

/// Function `name` of the specialisation, compiled for this device, or taken from where it was kept.
///
/// # Errors
/// If the source does not compile (with the compiler's log), or the driver does not take the result.
pub(crate) fn function(device: &CudaDevice, spec: &Specialisation, name: &str) -> Result<CudaFunction> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let key = (context.cu_ctx() as usize, format!("{} {name} {}", spec.op, spec.defines.join(" ")));
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(function) = loaded.get(&key) {
        return Ok(function.clone());
    }
    let (major, minor) = context.compute_capability().w()?;
    let module = load(device, spec, &architecture(major, minor))?;
    let function = module.load_function(name).w()?;
    loaded.insert(key, function.clone());
    Ok(function)
}

/// The compiler's name of a compute capability; from Hopper on with the architecture's own instructions.
fn architecture(major: i32, minor: i32) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

fn load(device: &CudaDevice, spec: &Specialisation, arch: &str) -> Result<std::sync::Arc<CudaModule>> {
    let stream = device.cuda_stream();
    let module = |cubin: Vec<u8>| stream.context().load_module(Ptx::from_binary(cubin));
    let file = cache_dir().map(|dir| dir.join(file_name(spec, arch)));
    // A file that the driver refuses is damaged: compile again and replace it.
    if let Some(kept) = file.as_ref().and_then(|f| fs::read(f).ok()).filter(|c| c.starts_with(b"\x7fELF"))
        && let Ok(module) = module(kept)
    {
        return Ok(module);
    }
    let cubin = compile(spec, arch)?;
    if let Some(file) = &file {
        // Without a cache the next process compiles again; nothing else is lost.
        let _ = keep(file, &cubin);
    }
    module(cubin).w()
}

/// Compiles to a cubin for one architecture, as `sm_90a`.
fn compile(spec: &Specialisation, arch: &str) -> Result<Vec<u8>> {
    let source = CString::new(spec.source()).map_err(candle_core::Error::wrap)?;
    let name = CString::new(format!("{}.cu", spec.op)).map_err(candle_core::Error::wrap)?;
    let mut options = spec.options();
    options.push(format!("--gpu-architecture={arch}"));
    let program = Program(result::create_program(&source, Some(&name)).map_err(candle_core::Error::wrap)?);
    // SAFETY: the program was made just above and lives to the end of this function.
    if let Err(error) = unsafe { result::compile_program(program.0, &options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
        let (major, minor) = version();
        bail!(
            "{}: NVRTC {major}.{minor} could not compile the CUDA source for {arch} ({error:?}) with {options:?}:\n{}",
            spec.op,
            String::from_utf8_lossy(&log)
        );
    }
    program.cubin()
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn cubin(&self) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is alive; size is a valid place for the answer.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) }.result().map_err(candle_core::Error::wrap)?;
        let mut cubin = vec![0u8; size];
        // SAFETY: the buffer has the size that was asked for.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) }
            .result()
            .map_err(candle_core::Error::wrap)?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by create_program, destroyed once.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// NVRTC's version; (0, 0) if it does not say.
fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are valid places for the answer.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

/// `SEMISEP_CACHE_DIR`, or `semisep` in the user's cache directory; `None` if there is neither.
fn cache_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let own = var("SEMISEP_CACHE_DIR");
    let user =
        || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache"))).map(|c| c.join("semisep"));
    own.or_else(user).map(|dir| dir.join("cubin"))
}

fn file_name(spec: &Specialisation, arch: &str) -> String {
    let (major, minor) = version();
    let text =
        [spec.source(), spec.options().join("\0"), arch.into(), format!("{major}.{minor}")].join("\0\0");
    format!("{}-{arch}-{:032x}.cubin", spec.op, fnv1a(text.as_bytes()))
}

/// FNV-1a in 128 bits: the same in every build, unlike the standard library's hashes.
fn fnv1a(bytes: &[u8]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
    bytes
        .iter()
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |h, b| (h ^ u128::from(*b)).wrapping_mul(PRIME))
}

/// Writes under a temporary name first, so that no reader meets half a file.
fn keep(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = file.with_extension(format!("tmp{}", std::process::id()));
    fs::write(&temporary, cubin)?;
    fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs NVRTC, no GPU.
    #[test]
    fn compiles_to_a_cubin_and_reports_errors_with_the_log() -> Result<()> {
        let spec =
            |body| Specialisation { op: "probe", body, defines: vec!["DATA_BF16".into(), "PROBE=3".into()] };
        let good = spec("extern \"C\" __global__ void f(real* x) { x[threadIdx.x] = PROBE; }");
        for arch in ["sm_80", "sm_90a"] {
            assert!(compile(&good, arch)?.starts_with(b"\x7fELF"));
        }
        let error =
            compile(&spec("extern \"C\" __global__ void f() { undefined_name; }"), "sm_80").unwrap_err();
        let error = error.to_string();
        assert!(error.contains("probe: NVRTC") && error.contains("undefined_name"), "{error}");
        Ok(())
    }

    #[test]
    fn names_differ_with_all_that_matters() {
        let spec = |body, define: &str| Specialisation { op: "probe", body, defines: vec![define.into()] };
        let base = file_name(&spec("a", "N=1"), "sm_80");
        assert_eq!(base, file_name(&spec("a", "N=1"), "sm_80"));
        for other in [(spec("b", "N=1"), "sm_80"), (spec("a", "N=2"), "sm_80"), (spec("a", "N=1"), "sm_90a")]
        {
            assert_ne!(base, file_name(&other.0, other.1));
        }
        assert_eq!((architecture(8, 6), architecture(9, 0)), ("sm_86".into(), "sm_90a".into()));
    }
}
