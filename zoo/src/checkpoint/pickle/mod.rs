//! The part of Python's pickle that PyTorch weights use, and nothing that could run code.
//!
//! A pickle is a program for a stack machine. The machine here knows tuples, lists, dicts, strings and numbers; the only
//! names it resolves are those of [`value::Global::resolve`], and "calling" one of them builds a description of a tensor. Any
//! other name ends the reading with an error that says which. All values live in one arena, so that neither depth nor
//! cycles matter, and each byte of the file makes at most one of them: memory is bounded by the file's size.

mod machine;
mod value;

use machine::Machine;
#[cfg(test)]
pub(super) use value::Storage;
pub(super) use value::View;
use value::{Id, Value};

/// Largest pickle that is read. The weights are outside of it: 16 MiB describe a hundred thousand tensors.
const MAX_PICKLE: usize = 16 << 20;

/// The named tensors of a pickled state dict, or of the dict at `state_dict`, `model_state_dict`, `model` or `module`
/// within it.
pub(super) fn state_dict(pickle: &[u8]) -> Result<Vec<(&str, View<'_>)>, String> {
    if pickle.len() > MAX_PICKLE {
        return Err(format!("expected a pickle of at most {MAX_PICKLE} bytes, found {}", pickle.len()));
    }
    let mut machine = Machine::new(pickle);
    let root = machine.run().map_err(|m| format!("at byte {} of the pickle: {m}", machine.at))?;
    tensors(&machine, root)
}

/// The tensors of a dict, by name; other values are passed over.
fn tensors<'a>(machine: &Machine<'a>, root: Id) -> Result<Vec<(&'a str, View<'a>)>, String> {
    let mut dict = root;
    for _ in 0..3 {
        let Value::Dict(items) = machine.value(dict)? else {
            return Err("expected a dict of named tensors (a state dict), found another value".into());
        };
        let mut tensors = Vec::new();
        let mut inner = None;
        for &(key, value) in items {
            let &Value::Str(name) = machine.value(key)? else { continue };
            match machine.value(value)? {
                Value::View(view) => tensors.push((name, (**view).clone())),
                Value::Dict(_) if matches!(name, "state_dict" | "model_state_dict" | "model" | "module") => {
                    inner = Some(value);
                }
                _ => {}
            }
        }
        match inner {
            Some(inner) if tensors.is_empty() => dict = inner,
            _ => return Ok(tensors),
        }
    }
    Err("expected a dict of named tensors (a state dict), found dicts within dicts".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_named_and_refused() {
        let system = b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.";
        let eval = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.";
        let inst = b"(S'ls'\nios\nsystem\n.";
        for (pickle, name) in [(&system[..], "os.system"), (eval, "builtins.eval")] {
            let message = state_dict(pickle).unwrap_err();
            assert!(message.contains(name) && message.contains("nothing was executed"), "{message}");
        }
        assert!(state_dict(inst).is_err());
        assert!(state_dict(b"(ios\nsystem\n.").unwrap_err().contains("os.system"));
    }

    #[test]
    fn deep_and_cyclic_values_are_harmless() {
        let mut nested = vec![b']'; 1_000_000];
        nested.extend(vec![b'a'; 999_999]);
        nested.push(b'.');
        assert!(state_dict(&nested).unwrap_err().contains("state dict"));
        // d = {}; d["model"] = d
        assert!(state_dict(b"}q\0X\x05\0\0\0modelh\0s.").unwrap_err().contains("within dicts"));
    }

    #[test]
    fn copies_are_counted() {
        // items = [pair, pair, ...]; OrderedDict(items) over and over.
        let mut pickle = b"NN\x86q\x00]q\x01".to_vec();
        pickle.extend(b"h\x00a".repeat(100_000));
        pickle.extend(b"h\x01\x85q\x02ccollections\nOrderedDict\nq\x03");
        pickle.extend(b"h\x03h\x02R0".repeat(100_000));
        pickle.push(b'.');
        assert!(state_dict(&pickle).unwrap_err().contains("again and again"));
    }

    #[test]
    fn the_machine_stays_in_bounds() {
        for pickle in [
            &b""[..],
            b".",
            b"s.",
            b"(((",
            b"t.",
            b"h\x05.",
            b"X\xff\xff\xff\xffabc",
            b"\x8d\xff",
            b"}(K\x01u.",
        ] {
            assert!(state_dict(pickle).is_err(), "{pickle:?}");
        }
    }
}
