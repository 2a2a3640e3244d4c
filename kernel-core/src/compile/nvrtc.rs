//! The calls of NVRTC, through cudarc's `sys` layer: its safe layer passes no in-memory headers and gives no CUBIN.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use cudarc::nvrtc::sys::{self, nvrtcResult};

use crate::error::Result;
use crate::probe::{Library, ensure};

/// The version of the NVRTC that compiles, as (major, minor).
///
/// # Errors
/// [`crate::Error::MissingLibrary`] when there is none.
pub fn nvrtc_version() -> Result<(u32, u32)> {
    ensure(Library::Nvrtc)?;
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: the library is loaded, and the call writes two ints. It can fail only on null pointers; 0.0 would then stand for it.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

/// What NVRTC made of a source: the CUBIN and the log, or the log alone when it failed.
pub(super) struct Compiled {
    pub(super) image: std::result::Result<Vec<u8>, String>,
    pub(super) log: String,
}

/// A created program, destroyed on drop.
struct Handle(sys::nvrtcProgram);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle came from nvrtcCreateProgram and is destroyed once. The result is of no use here.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Compiles `source` for the architecture that `options` name. `name` is the file name in the log; headers are (name, text).
///
/// # Errors
/// [`crate::Error::MissingLibrary`] only; a failed compilation is in [`Compiled::image`], as the failure's name.
pub(super) fn run(name: &str, source: &str, headers: &[(&str, &str)], options: &[String]) -> Result<Compiled> {
    ensure(Library::Nvrtc)?;
    Ok(match create_and_compile(name, source, headers, options) {
        Ok(compiled) => compiled,
        Err(failure) => Compiled { image: Err(failure), log: String::new() },
    })
}

fn create_and_compile(
    name: &str,
    source: &str,
    headers: &[(&str, &str)],
    options: &[String],
) -> std::result::Result<Compiled, String> {
    let name = c_string("the program's name", name)?;
    let source = c_string("the source", source)?;
    let texts = headers.iter().map(|(name, text)| c_string(name, text)).collect::<std::result::Result<Vec<_>, _>>()?;
    let names = headers
        .iter()
        .map(|(name, _)| c_string("a header's name", name))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let options =
        options.iter().map(|option| c_string("an option", option)).collect::<std::result::Result<Vec<_>, _>>()?;
    let (texts, names, options) = (pointers(&texts), pointers(&names), pointers(&options));

    let mut program: sys::nvrtcProgram = ptr::null_mut();
    // SAFETY: all strings end in NUL and outlive the handle, which is dropped at the end of this function, before them; the
    // two arrays have `headers.len()` entries each.
    let created = unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            name.as_ptr(),
            texts.len() as c_int,
            texts.as_ptr(),
            names.as_ptr(),
        )
    };
    check("nvrtcCreateProgram", created)?;
    let program = Handle(program);

    // SAFETY: the program is alive, and `options` are NUL-terminated strings that outlive the call.
    let status = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as c_int, options.as_ptr()) };
    let log = read_log(&program)?;
    let image = check("nvrtcCompileProgram", status).and_then(|()| read_cubin(&program));
    Ok(Compiled { image, log })
}

fn read_log(program: &Handle) -> std::result::Result<String, String> {
    let mut bytes = 0;
    // SAFETY: the program is alive; the call writes one size_t.
    check("nvrtcGetProgramLogSize", unsafe { sys::nvrtcGetProgramLogSize(program.0, &mut bytes) })?;
    let mut log = vec![0u8; bytes];
    // SAFETY: the program is alive, and the buffer has the size that NVRTC asked for.
    check("nvrtcGetProgramLog", unsafe { sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast::<c_char>()) })?;
    Ok(String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned())
}

fn read_cubin(program: &Handle) -> std::result::Result<Vec<u8>, String> {
    let mut bytes = 0;
    // SAFETY: the program is alive; the call writes one size_t.
    check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) })?;
    if bytes == 0 {
        return Err("NVRTC made no CUBIN: expected a real architecture (sm_..), not a virtual one".to_owned());
    }
    let mut image = vec![0u8; bytes];
    // SAFETY: the program is alive, and the buffer has the size that NVRTC asked for.
    check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast::<c_char>()) })?;
    Ok(image)
}

fn check(call: &str, status: nvrtcResult) -> std::result::Result<(), String> {
    if status == nvrtcResult::NVRTC_SUCCESS { Ok(()) } else { Err(format!("{call} failed with {status:?}")) }
}

fn c_string(what: &str, text: &str) -> std::result::Result<CString, String> {
    CString::new(text).map_err(|error| format!("{what} contains a NUL byte at {}", error.nul_position()))
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| CStr::as_ptr(string)).collect()
}
