//! The stack machine.

use std::collections::HashMap;

use super::value::{Global, Id, Storage, Value, View};
use crate::checkpoint::{MAX_RANK, StoredType};

/// Most values that a pickle may make.
const MAX_VALUES: usize = 4 << 20;
/// Most arguments of a call, or parts of a reference to a storage.
const MAX_ARGUMENTS: usize = 16;

/// A pickle on its way.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    /// The next byte.
    pub(super) at: usize,
    arena: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Items copied from one container to another: like everything else, no more than there are bytes.
    copied: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let (arena, stack, marks, memo) = Default::default();
        Self { bytes, at: 0, arena, stack, marks, memo, copied: 0 }
    }

    /// Runs to the end and gives the value on top.
    pub(super) fn run(&mut self) -> Result<Id, String> {
        loop {
            let [opcode] = self.array()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            // Protocol and frames.
            0x80 => self.skip(1),
            0x95 => self.skip(8),
            // Constants.
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            b'J' => self.array().map(i32::from_le_bytes).and_then(|v| self.push(Value::Int(v.into()))),
            b'K' => self.array().map(u8::from_le_bytes).and_then(|v| self.push(Value::Int(v.into()))),
            b'M' => self.array().map(u16::from_le_bytes).and_then(|v| self.push(Value::Int(v.into()))),
            0x8a => self.long(),
            b'G' => self.skip(8).and_then(|()| self.push(Value::Float)),
            // Strings.
            b'X' => self.array().map(u32::from_le_bytes).and_then(|n| self.string(n as usize)),
            0x8c => self.array().map(u8::from_le_bytes).and_then(|n| self.string(n.into())),
            0x8d => self.array().map(u64::from_le_bytes).and_then(|n| self.string(size(n)?)),
            b'T' | b'B' => self.array().map(u32::from_le_bytes).and_then(|n| self.blob(n as usize)),
            b'U' | b'C' => self.array().map(u8::from_le_bytes).and_then(|n| self.blob(n.into())),
            0x8e => self.array().map(u64::from_le_bytes).and_then(|n| self.blob(size(n)?)),
            // The stack and the memo.
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.since_mark().map(drop),
            b'2' => self.top().map(|top| self.stack.push(top)),
            b'q' => self.array().map(u8::from_le_bytes).and_then(|n| self.remember(n.into())),
            b'r' => self.array().map(u32::from_le_bytes).and_then(|n| self.remember(n)),
            0x94 => self.remember(u32::try_from(self.memo.len()).map_err(|e| e.to_string())?),
            b'h' => self.array().map(u8::from_le_bytes).and_then(|n| self.recall(n.into())),
            b'j' => self.array().map(u32::from_le_bytes).and_then(|n| self.recall(n)),
            _ => self.build(opcode),
        }
    }

    /// Opcodes that make or change containers and objects.
    fn build(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Value::Tuple(items))
            }
            b't' => self.since_mark().and_then(|items| self.push(Value::Tuple(items))),
            b']' => self.push(Value::List(Vec::new())),
            b'l' => self.since_mark().and_then(|items| self.push(Value::List(items))),
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => self.since_mark().and_then(pairs).and_then(|items| self.push(Value::Dict(items))),
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' => self.since_mark().and_then(|items| self.append(items)),
            b's' => self.pop_many(2).and_then(pairs).and_then(|items| self.insert(items)),
            b'u' => self.since_mark().and_then(pairs).and_then(|items| self.insert(items)),
            b'c' | b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                if opcode == b'i' {
                    return Err(refusal(module, name));
                }
                self.global(module, name)
            }
            0x93 => match *self.pop_many(2)? {
                [module, name] => match (self.value(module)?, self.value(name)?) {
                    (&Value::Str(module), &Value::Str(name)) => self.global(module, name),
                    _ => Err("expected a module and a name as strings".into()),
                },
                _ => Err("the stack is empty".into()),
            },
            b'R' | 0x81 => self.call(),
            // The attributes of an OrderedDict (torch keeps version numbers there) are not needed.
            b'b' => {
                self.pop()?;
                let object = self.top()?;
                matches!(self.value(object)?, Value::Dict(_)).then_some(()).ok_or_else(|| {
                    "expected attributes of a dict, found those of another object, which are not read"
                        .to_string()
                })
            }
            b'Q' => self.persistent(),
            _ => Err(format!("opcode {opcode:#04x} does not belong in a file of weights")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = Global::resolve(module, name).ok_or_else(|| refusal(module, name))?;
        self.push(Value::Global(global))
    }

    /// `callable(*arguments)`, for the callables that describe tensors.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let &Value::Global(global) = self.value(callable)? else {
            return Err("expected a known name to call, found another value".into());
        };
        let Value::Tuple(arguments) = self.value(arguments)? else {
            return Err("expected a tuple of arguments".into());
        };
        if arguments.len() > MAX_ARGUMENTS {
            return Err(format!("expected at most {MAX_ARGUMENTS} arguments, found {}", arguments.len()));
        }
        let arguments = arguments.clone();
        let value = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (Global::OrderedDict, &[items]) => Value::Dict(self.items(items)?),
            (Global::Size, &[sizes]) => Value::Tuple(self.shape(sizes)?.to_vec()),
            (Global::RebuildParameter, &[tensor, ..]) => match self.value(tensor)? {
                Value::View(view) => Value::View(view.clone()),
                _ => return Err("expected the tensor of a parameter".into()),
            },
            (Global::RebuildTensor | Global::RebuildTensorV2, &[storage, offset, shape, strides, ..]) => {
                Value::View(Box::new(self.view(storage, offset, shape, strides, None)?))
            }
            (Global::RebuildTensorV3, &[storage, offset, shape, strides, _, _, dtype, ..]) => {
                let &Value::Global(Global::Type(dtype)) = self.value(dtype)? else {
                    return Err("expected the dtype of a tensor".into());
                };
                Value::View(Box::new(self.view(storage, offset, shape, strides, Some(dtype))?))
            }
            _ => return Err(format!("{global:?} cannot be called with {} arguments", arguments.len())),
        };
        self.push(value)
    }

    /// `("storage", type, key, device, elements)`.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let parts = self.sequence(id)?;
        if parts.len() > MAX_ARGUMENTS {
            return Err(format!("expected a reference to a storage, found {} values", parts.len()));
        }
        let values: Vec<&Value<'a>> = parts.iter().map(|&id| self.value(id)).collect::<Result<_, _>>()?;
        let storage = match values.as_slice() {
            [Value::Str("storage"), Value::Global(kind), Value::Str(key), _, Value::Int(elements), ..] => {
                let dtype = match kind {
                    Global::Type(dtype) => Some(*dtype),
                    Global::UntypedStorage => None,
                    _ => return Err(format!("expected a storage type, found {kind:?}")),
                };
                Storage { key, dtype, elements: natural(*elements)? }
            }
            _ => return Err("expected (\"storage\", type, key, device, elements)".into()),
        };
        self.push(Value::Storage(storage))
    }

    fn view(
        &self,
        storage: Id,
        offset: Id,
        shape: Id,
        strides: Id,
        dtype: Option<StoredType>,
    ) -> Result<View<'a>, String> {
        let &Value::Storage(storage) = self.value(storage)? else {
            return Err("expected the storage of a tensor".into());
        };
        let dtype = dtype.or(storage.dtype).ok_or("a tensor over an untyped storage has no dtype")?;
        let &Value::Int(offset) = self.value(offset)? else { return Err("expected an offset".into()) };
        let (shape, strides) = (self.naturals(shape)?, self.naturals(strides)?);
        Ok(View { storage, dtype, offset: natural(offset)?, shape, strides })
    }

    /// One number a dimension.
    fn shape(&self, id: Id) -> Result<&[Id], String> {
        let items = self.sequence(id)?;
        if items.len() > MAX_RANK {
            return Err(format!("expected at most {MAX_RANK} dimensions, found {}", items.len()));
        }
        Ok(items)
    }

    fn naturals(&self, id: Id) -> Result<Vec<usize>, String> {
        self.shape(id)?
            .iter()
            .map(|&id| match self.value(id)? {
                Value::Int(n) => natural(*n),
                _ => Err("expected a whole number in a shape".to_string()),
            })
            .collect()
    }

    fn sequence(&self, id: Id) -> Result<&[Id], String> {
        match self.value(id)? {
            Value::Tuple(items) | Value::List(items) => Ok(items),
            _ => Err("expected a tuple".into()),
        }
    }

    /// Key and value pairs of a list of pairs or of a dict.
    fn items(&mut self, id: Id) -> Result<Vec<(Id, Id)>, String> {
        self.copied += match self.value(id)? {
            Value::Dict(items) => items.len(),
            _ => self.sequence(id)?.len(),
        };
        if self.copied > self.bytes.len() {
            return Err("dicts are copied again and again".into());
        }
        if let Value::Dict(items) = self.value(id)? {
            return Ok(items.clone());
        }
        let pair = |&id: &Id| match self.sequence(id)? {
            &[key, value] => Ok((key, value)),
            _ => Err("expected a pair of key and value".to_string()),
        };
        self.sequence(id)?.iter().map(pair).collect()
    }

    pub(super) fn value(&self, id: Id) -> Result<&Value<'a>, String> {
        self.arena.get(id as usize).ok_or_else(|| "a value is missing".into())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.arena.len() >= MAX_VALUES {
            return Err(format!("expected at most {MAX_VALUES} values"));
        }
        let id = Id::try_from(self.arena.len()).map_err(|e| e.to_string())?;
        self.arena.push(value);
        self.stack.push(id);
        Ok(())
    }

    /// How low the stack may be popped: values below the last mark are not for this opcode.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, String> {
        if self.stack.len() <= self.floor() {
            return Err("the stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>, String> {
        let start = self.stack.len().checked_sub(n).filter(|&start| start >= self.floor());
        start.map(|start| self.stack.split_off(start)).ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Result<Id, String> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.copied().ok_or_else(|| "the stack is empty".into())
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("there is no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, key: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or_else(|| format!("nothing is remembered as {key}"))?;
        self.stack.push(id);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let list = self.top()?;
        match self.arena.get_mut(list as usize) {
            Some(Value::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err("expected a list to append to".into()),
        }
    }

    fn insert(&mut self, items: Vec<(Id, Id)>) -> Result<(), String> {
        let dict = self.top()?;
        match self.arena.get_mut(dict as usize) {
            Some(Value::Dict(dict)) => {
                dict.extend(items);
                Ok(())
            }
            _ => Err("expected a dict to insert into".into()),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..n).ok_or_else(|| format!("expected {n} more bytes, found {}", rest.len()))?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "too few bytes".into())
    }

    fn skip(&mut self, n: usize) -> Result<(), String> {
        self.take(n).map(drop)
    }

    fn string(&mut self, n: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(n)?).map_err(|e| format!("a string is not UTF-8: {e}"))?;
        self.push(Value::Str(text))
    }

    /// Strings of Python 2 are text where they can be.
    fn blob(&mut self, n: usize) -> Result<(), String> {
        let value = std::str::from_utf8(self.take(n)?).map_or(Value::Bytes, Value::Str);
        self.push(value)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or("a name does not end")?;
        let line = self.take(end)?;
        self.skip(1)?;
        std::str::from_utf8(line).map_err(|e| format!("a name is not UTF-8: {e}"))
    }

    /// A little-endian number in two's complement of up to 8 bytes.
    fn long(&mut self) -> Result<(), String> {
        let [n] = self.array()?;
        let bytes = self.take(n.into())?;
        if bytes.len() > 8 {
            return Err(format!("expected a number of at most 8 bytes, found {n}"));
        }
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }
}

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>, String> {
    if !items.len().is_multiple_of(2) {
        return Err("a key has no value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn natural(n: i64) -> Result<usize, String> {
    usize::try_from(n).map_err(|_| format!("expected a number from 0 on, found {n}"))
}

fn size(n: u64) -> Result<usize, String> {
    usize::try_from(n).map_err(|_| format!("a length of {n} is too large"))
}

fn refusal(module: &str, name: &str) -> String {
    let short = |s: &str| s.chars().take(100).collect::<String>();
    format!(
        "refused: the file asks to load {}.{}, which is not part of weights; nothing was executed",
        short(module),
        short(name)
    )
}
