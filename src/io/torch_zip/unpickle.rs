//! A reader of pickles that can only build what a file of weights is made of: it runs no code and knows no class.
//!
//! A pickle is a program for a stack machine. `torch.save` uses about thirty of its instructions and, for weights, a
//! handful of globals ([`Global`]); everything else is refused by name. Values are small and `Copy`; containers live in
//! flat tables and are referred to by index. So a value that contains itself is harmless, nothing is ever walked or
//! dropped recursively, and each byte of the pickle costs a constant amount of memory at most.

use std::collections::HashMap;
use std::fmt;

use crate::io::quoted;
use crate::io::tensor::{ElementType, MAX_RANK};

/// The longest pickle that is read, in bytes. The published models' pickles have about 60 kB.
pub const MAX_LEN: usize = 1 << 21;

/// The globals that a file of weights may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its like.
    Storage(ElementType),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "DoubleStorage") => Self::Storage(ElementType::F64),
            ("torch", "FloatStorage") => Self::Storage(ElementType::F32),
            ("torch", "HalfStorage") => Self::Storage(ElementType::F16),
            ("torch", "BFloat16Storage") => Self::Storage(ElementType::Bf16),
            ("torch", "LongStorage") => Self::Storage(ElementType::I64),
            ("torch", "IntStorage") => Self::Storage(ElementType::I32),
            ("torch", "ShortStorage") => Self::Storage(ElementType::I16),
            ("torch", "CharStorage") => Self::Storage(ElementType::I8),
            ("torch", "ByteStorage") => Self::Storage(ElementType::U8),
            ("torch", "BoolStorage") => Self::Storage(ElementType::Bool),
            _ => return None,
        })
    }
}

/// A value of the pickle, which borrows its strings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'p> {
    /// `None`, a boolean, a float, a byte string, an integer beyond 64 bits: valid, and nothing here needs it.
    Other,
    /// An integer.
    Int(i64),
    /// A string.
    Str(&'p str),
    /// A list, whose items nothing here needs.
    List,
    /// A tuple: its first item and its length in the table of tuple items.
    Tuple(usize, usize),
    /// Index into [`Pickle::dicts`].
    Dict(usize),
    /// Index into [`Pickle::storages`].
    Storage(usize),
    /// Index into [`Pickle::tensors`].
    Tensor(usize),
    /// A class or function.
    Global(Global),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other => f.write_str("another value"),
            Self::Int(n) => write!(f, "the integer {n}"),
            Self::Str(text) => write!(f, "the string {}", quoted(text)),
            Self::List => f.write_str("a list"),
            Self::Tuple(_, items) => write!(f, "a tuple of {items} items"),
            Self::Dict(_) => f.write_str("a dictionary"),
            Self::Storage(_) => f.write_str("a storage"),
            Self::Tensor(_) => f.write_str("a tensor"),
            Self::Global(global) => write!(f, "{global:?}"),
        }
    }
}

/// A block of numbers in the archive that tensors are views of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Storage<'p> {
    /// The archive's entry `data/<key>`.
    pub key: &'p str,
    /// The type of its elements.
    pub dtype: ElementType,
    /// The number of elements it is said to have.
    pub elements: usize,
}

/// A view of a storage, counted in elements. Nothing is known yet about its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Index into [`Pickle::storages`].
    pub storage: usize,
    /// First element.
    pub offset: usize,
    /// Dimensions, at most [`MAX_RANK`].
    pub shape: Vec<usize>,
    /// Steps, one per dimension.
    pub strides: Vec<usize>,
}

/// What a pickle describes.
#[derive(Debug, Default)]
pub struct Pickle<'p> {
    /// The value itself: `None` until the end has been reached.
    root: Option<Value<'p>>,
    /// The items of every dictionary, in the order of the file.
    pub dicts: Vec<Vec<(Value<'p>, Value<'p>)>>,
    /// Every storage.
    pub storages: Vec<Storage<'p>>,
    /// Every tensor.
    pub tensors: Vec<Tensor>,
    tuple_items: Vec<Value<'p>>,
}

impl<'p> Pickle<'p> {
    /// Reads a pickle.
    ///
    /// # Errors
    /// Says at which byte the pickle is malformed or which global or instruction is refused. The file's name is left to
    /// the caller.
    pub fn read(bytes: &'p [u8]) -> Result<Self, String> {
        if bytes.len() > MAX_LEN {
            return Err(format!("the pickle is longer than the {MAX_LEN} bytes that weights ever need"));
        }
        let mut machine = Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let mut pickle = Pickle::default();
        loop {
            let at = machine.at;
            match machine.step(&mut pickle) {
                Ok(true) => {}
                Ok(false) => return Ok(pickle),
                Err(problem) => return Err(format!("the pickle at byte {at}: {problem}")),
            }
        }
    }

    /// The value that the pickle stands for.
    pub fn root(&self) -> Value<'p> {
        self.root.unwrap_or(Value::Other)
    }

    fn tuple(&self, value: Value<'p>, what: &str) -> Result<&[Value<'p>], String> {
        match value {
            Value::Tuple(start, len) => Ok(&self.tuple_items[start..start + len]),
            other => Err(format!("{what} should be a tuple, found {other}")),
        }
    }

    fn new_tuple(&mut self, items: impl IntoIterator<Item = Value<'p>>) -> Value<'p> {
        let start = self.tuple_items.len();
        self.tuple_items.extend(items);
        Value::Tuple(start, self.tuple_items.len() - start)
    }

    fn new_dict(&mut self) -> Value<'p> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    fn extend_dict(&mut self, dict: Value<'p>, items: &[Value<'p>]) -> Result<(), String> {
        let Value::Dict(dict) = dict else { return Err(format!("sets items of {dict}; only a dictionary has them")) };
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".into()) };
        self.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    /// A reference to a storage: `("storage", class, key, device, elements)`.
    fn new_storage(&mut self, id: Value<'p>) -> Result<Value<'p>, String> {
        let storage = match self.tuple(id, "a persistent id")? {
            &[Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key), _, elements] => {
                Storage { key, dtype, elements: size(elements, "a storage's size")? }
            }
            _ => return Err("a persistent id should be (\"storage\", class, key, device, size)".into()),
        };
        self.storages.push(storage);
        Ok(Value::Storage(self.storages.len() - 1))
    }

    /// What calling `callable` with `args` gives, for the few callables that are known.
    fn call(&mut self, callable: Value<'p>, args: Value<'p>) -> Result<Value<'p>, String> {
        let args = self.tuple(args, "the arguments")?;
        match (callable, args) {
            (Value::Global(Global::OrderedDict), []) => Ok(self.new_dict()),
            (Value::Global(Global::RebuildParameter), &[tensor @ Value::Tensor(_), _, _]) => Ok(tensor),
            (Value::Global(Global::RebuildTensor), &[Value::Storage(storage), offset, shape, strides, _, _, ..]) => {
                let tensor = Tensor {
                    storage,
                    offset: size(offset, "a tensor's offset")?,
                    shape: self.sizes(shape, "a tensor's shape")?,
                    strides: self.sizes(strides, "a tensor's strides")?,
                };
                self.tensors.push(tensor);
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            (Value::Global(known), args) => {
                Err(format!("{known:?} is called with {} unexpected arguments", args.len()))
            }
            (other, _) => Err(format!("calls {other}, which is no function")),
        }
    }

    fn sizes(&self, value: Value<'p>, what: &str) -> Result<Vec<usize>, String> {
        let items = self.tuple(value, what)?;
        if items.len() > MAX_RANK {
            return Err(format!("{what} has {} dimensions; at most {MAX_RANK} are supported", items.len()));
        }
        items.iter().map(|&item| size(item, what)).collect()
    }
}

fn size(value: Value, what: &str) -> Result<usize, String> {
    match value {
        Value::Int(n) => usize::try_from(n).map_err(|_| format!("{what} is {n}")),
        other => Err(format!("{what} should be an integer, found {other}")),
    }
}

/// The stack machine: the pickle's bytes, where it stands in them, and its three memories.
struct Machine<'p> {
    bytes: &'p [u8],
    at: usize,
    stack: Vec<Value<'p>>,
    /// Heights of the stack at which a `MARK` was set.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'p>>,
}

impl<'p> Machine<'p> {
    /// Executes one instruction; false at the end.
    fn step(&mut self, pickle: &mut Pickle<'p>) -> Result<bool, String> {
        let first = self.at == 0;
        let opcode = self.number::<1>()?[0];
        if first != (opcode == 0x80) {
            return Err("a pickle starts with its protocol, and states it once".into());
        }
        match opcode {
            0x80 => match self.number::<1>()?[0] {
                2..=5 => {}
                other => return Err(format!("protocol {other}; 2 to 5 are supported, and torch.save writes 2")),
            },
            // A frame only announces how many bytes belong together.
            0x95 => {
                let length = u64::from_le_bytes(self.number()?);
                let rest = self.bytes.len() - self.at;
                if length > rest as u64 {
                    return Err(format!("a frame of {length} bytes where {rest} are left"));
                }
            }
            b'.' => {
                pickle.root = Some(self.pop()?);
                return match (self.stack.len(), self.marks.len()) {
                    (0, 0) => Ok(false),
                    (values, marks) => Err(format!("the end leaves {values} values and {marks} marks unused")),
                };
            }

            b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
            b'G' => {
                self.number::<8>()?;
                self.stack.push(Value::Other);
            }
            b'J' => {
                let number = i32::from_le_bytes(self.number()?);
                self.stack.push(Value::Int(number.into()));
            }
            b'K' => {
                let number = u8::from_le_bytes(self.number()?);
                self.stack.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.number()?);
                self.stack.push(Value::Int(number.into()));
            }
            0x8a => {
                let length = self.number::<1>()?[0];
                let value = long(self.take(length.into())?);
                self.stack.push(value);
            }
            b'X' => {
                let length = u32::from_le_bytes(self.number()?);
                self.push_str(length.into())?;
            }
            0x8c => {
                let length = self.number::<1>()?[0];
                self.push_str(length.into())?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.number()?);
                self.push_str(length)?;
            }
            b'C' => {
                let length = self.number::<1>()?[0];
                self.take(length.into())?;
                self.stack.push(Value::Other);
            }
            b'B' => {
                let length = u32::from_le_bytes(self.number()?);
                self.take(length.into())?;
                self.stack.push(Value::Other);
            }

            b'(' => self.marks.push(self.stack.len()),
            b')' => self.stack.push(pickle.new_tuple([])),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let first = self.reachable(count)?;
                let tuple = pickle.new_tuple(self.stack.drain(first..));
                self.stack.push(tuple);
            }
            b't' => {
                let first = self.pop_mark()?;
                let tuple = pickle.new_tuple(self.stack.drain(first..));
                self.stack.push(tuple);
            }
            b']' => self.stack.push(Value::List),
            b'a' => {
                self.pop()?;
                self.expect_list()?;
            }
            b'e' => {
                let first = self.pop_mark()?;
                self.stack.truncate(first);
                self.expect_list()?;
            }
            b'}' => self.stack.push(pickle.new_dict()),
            b's' => {
                let first = self.reachable(2)?;
                let items = self.stack.split_off(first);
                pickle.extend_dict(self.top()?, &items)?;
            }
            b'u' => {
                let first = self.pop_mark()?;
                let items = self.stack.split_off(first);
                pickle.extend_dict(self.top()?, &items)?;
            }

            b'q' => {
                let index = self.number::<1>()?[0];
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.number()?);
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let index = self.number::<1>()?[0];
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.number()?);
                self.recall(index)?;
            }

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => self.push_global(module, name)?,
                (name, module) => return Err(format!("a global is named by {module} and {name}")),
            },
            b'Q' => {
                let id = self.pop()?;
                self.stack.push(pickle.new_storage(id)?);
            }
            b'R' => {
                let args = self.pop()?;
                let callable = self.pop()?;
                self.stack.push(pickle.call(callable, args)?);
            }
            // A state dictionary's attributes (`_metadata`): they say nothing about the weights.
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                let (Value::Dict(_), Value::Dict(_)) = (object, state) else {
                    return Err(format!("sets the state of {object} to {state}; only a dictionary's is known"));
                };
            }
            other => {
                return Err(format!(
                    "instruction {:?} (0x{other:02x}) is not among those that torch.save uses for weights",
                    char::from(other)
                ));
            }
        }
        Ok(true)
    }

    fn take(&mut self, length: u64) -> Result<&'p [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let taken = taken.ok_or_else(|| format!("{length} bytes are needed and {} are left", rest.len()))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let rest = &self.bytes[self.at..];
        let (number, _) = rest.split_first_chunk().ok_or("the pickle ends in the middle of an instruction")?;
        self.at += N;
        Ok(*number)
    }

    fn line(&mut self) -> Result<&'p str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("a line without an end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8".into())
    }

    /// Values below the latest mark are out of reach.
    fn reachable(&self, count: usize) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let first = self.stack.len().checked_sub(count).filter(|&first| first >= floor);
        first.ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Result<Value<'p>, String> {
        Ok(self.stack[self.reachable(1)?])
    }

    fn pop(&mut self) -> Result<Value<'p>, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<usize, String> {
        self.marks.pop().ok_or_else(|| "no mark is set".into())
    }

    fn push_str(&mut self, length: u64) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a string that is not UTF-8")?;
        self.stack.push(Value::Str(text));
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = Global::find(module, name).ok_or_else(|| {
            format!(
                "names {}, which a file of weights has no need of and which is never run; \
                 save the model's state_dict alone",
                quoted(&format!("{module}.{name}"))
            )
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    fn expect_list(&self) -> Result<(), String> {
        match self.top()? {
            Value::List => Ok(()),
            other => Err(format!("items are appended to {other}, which is no list")),
        }
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let value = self.top()?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let value = self.memo.get(&index).ok_or_else(|| format!("value {index} is used before it is stored"))?;
        self.stack.push(*value);
        Ok(())
    }
}

/// A little-endian two's complement integer of any length.
fn long(bytes: &[u8]) -> Value<'static> {
    if bytes.len() > 8 {
        return Value::Other;
    }
    let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
    let mut wide = [sign; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}
