//! A tensor in a file: where its elements lie, and how their bytes become numbers.
//!
//! Element `(i, j, …)` of a tensor lies at byte `start + size · (i·stride_0 + j·stride_1 + …)` of its file, little-endian.
//! That all of them lie inside the tensor's storage is checked once, when the [`TensorInfo`] is made.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use half::{bf16, f16};

/// More dimensions than any model has; the bound keeps a hostile file from making shapes that are large themselves.
pub const MAX_RANK: usize = 8;

/// How many elements are converted at a time, and so how far a file's pages are read ahead of being let go.
const CHUNK: usize = 1 << 18;

/// How an element is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl ElementType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The name that safetensors gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a file: its name, element type and shape, and where its elements lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name it goes by.
    pub name: String,
    /// How its elements are stored.
    pub dtype: ElementType,
    /// Its dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Step to the next index of each dimension, in elements.
    strides: Vec<usize>,
    /// Byte of the file at which element 0 lies.
    start: usize,
    /// Which of a checkpoint's files.
    pub(crate) file: usize,
}

impl TensorInfo {
    /// A view into `storage` (a byte range of the file), `offset` and `strides` counted in elements.
    ///
    /// # Errors
    /// Says what is wrong, without the tensor's name: an element lies outside the storage, elements overlap so that the
    /// view is larger than its storage, or a product overflows.
    pub(crate) fn new(
        name: impl Into<String>,
        dtype: ElementType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        storage: Range<usize>,
        offset: usize,
    ) -> Result<Self, String> {
        let elements = element_count(&shape)?;
        if shape.len() != strides.len() {
            return Err(format!("has {} dimensions but {} strides", shape.len(), strides.len()));
        }
        let available = storage.len() / dtype.size();
        if elements > available {
            return Err(format!("of shape {shape:?} has {elements} elements, but its storage holds {available}"));
        }
        if elements > 0 {
            let furthest = shape
                .iter()
                .zip(&strides)
                .try_fold(offset, |sum, (&dim, &stride)| (dim - 1).checked_mul(stride)?.checked_add(sum));
            if furthest.is_none_or(|furthest| furthest >= available) {
                return Err(format!(
                    "of shape {shape:?}, strides {strides:?}, offset {offset} reaches outside its storage of {available} elements"
                ));
            }
        }
        // An empty tensor may carry any offset; its start is never used.
        let start = if elements > 0 { storage.start + offset * dtype.size() } else { storage.start };
        Ok(Self { name: name.into(), dtype, shape, strides, start, file: 0 })
    }

    /// The tensor that fills `storage` (a byte range of the file) in row-major order.
    ///
    /// # Errors
    /// As for [`TensorInfo::new`].
    pub(crate) fn row_major(
        name: impl Into<String>,
        dtype: ElementType,
        shape: Vec<usize>,
        storage: Range<usize>,
    ) -> Result<Self, String> {
        element_count(&shape)?;
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i].max(1);
        }
        Self::new(name, dtype, shape, strides, storage, 0)
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&dim, &stride)| {
            let fits = dim == 1 || stride == expected;
            expected *= dim;
            fits
        }) || self.elements() == 0
    }

    /// Whether both are the same view of the same bytes, as tied weights are in a PyTorch archive.
    pub fn same_location(&self, other: &Self) -> bool {
        (self.file, self.start, self.dtype, &self.shape, &self.strides)
            == (other.file, other.start, other.dtype, &other.shape, &other.strides)
    }

    /// The flat (row-major) index ranges in which a tensor is read.
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let elements = self.elements();
        (0..elements).step_by(CHUNK).map(move |start| start..elements.min(start + CHUNK))
    }

    /// The bytes of the file that hold the elements `flat`, gaps included.
    pub(crate) fn span(&self, flat: Range<usize>) -> Range<usize> {
        let size = self.dtype.size();
        if flat.is_empty() {
            return self.start..self.start;
        }
        if self.is_contiguous() {
            return self.start + flat.start * size..self.start + flat.end * size;
        }
        let furthest: usize = self.shape.iter().zip(&self.strides).map(|(dim, stride)| (dim - 1) * stride).sum();
        self.start..self.start + (furthest + 1) * size
    }

    /// Appends the elements `flat` (row-major indices) to `out`; `file` is the whole file's bytes.
    ///
    /// # Errors
    /// The element type cannot be read as `T`, or `file` is not the file this tensor was found in.
    pub fn read<T: Number>(&self, file: &[u8], flat: Range<usize>, out: &mut Vec<T>) -> Result<(), String> {
        let raw = self.raw(file, flat).ok_or("lies outside the file")?;
        if T::decode(self.dtype, &raw, out) {
            Ok(())
        } else {
            Err(format!("is stored as {}, which cannot be read as {}", self.dtype, T::KIND))
        }
    }

    fn raw<'f>(&self, file: &'f [u8], flat: Range<usize>) -> Option<Cow<'f, [u8]>> {
        let span = file.get(self.span(flat.clone()))?;
        if self.is_contiguous() {
            return Some(Cow::Borrowed(span));
        }
        let size = self.dtype.size();
        let mut gathered = Vec::with_capacity(flat.len() * size);
        for index in flat {
            let mut rest = index;
            let mut at = 0;
            for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
                at += rest % dim * stride;
                rest /= dim;
            }
            gathered.extend_from_slice(span.get(at * size..(at + 1) * size)?);
        }
        Some(Cow::Owned(gathered))
    }
}

/// The product of the dimensions.
///
/// # Errors
/// There are more than [`MAX_RANK`] of them, or it does not fit in `usize`, even if a dimension is zero.
pub(crate) fn element_count(shape: &[usize]) -> Result<usize, String> {
    if shape.len() > MAX_RANK {
        return Err(format!("has {} dimensions; at most {MAX_RANK} are supported", shape.len()));
    }
    // Zeros are set aside so that partial products, and with them strides, are known to fit as well.
    let nonzero = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1)));
    let nonzero = nonzero.ok_or_else(|| format!("of shape {shape:?} is too large"))?;
    Ok(if shape.contains(&0) { 0 } else { nonzero })
}

/// What elements can be read as.
pub trait Number: Copy {
    /// In words, for messages.
    const KIND: &'static str;
    /// Appends the elements of `raw`; false where `dtype` cannot be read as `Self`.
    fn decode(dtype: ElementType, raw: &[u8], out: &mut Vec<Self>) -> bool;
    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

fn extend<const N: usize, T>(raw: &[u8], out: &mut Vec<T>, number: impl Fn([u8; N]) -> T) -> bool {
    out.extend(raw.as_chunks::<N>().0.iter().map(|&bytes| number(bytes)));
    true
}

impl Number for f32 {
    const KIND: &'static str = "floating-point numbers";

    fn decode(dtype: ElementType, raw: &[u8], out: &mut Vec<Self>) -> bool {
        match dtype {
            ElementType::F64 => extend(raw, out, |b| f64::from_le_bytes(b) as f32),
            ElementType::F32 => extend(raw, out, f32::from_le_bytes),
            ElementType::F16 => extend(raw, out, |b| f16::from_le_bytes(b).to_f32()),
            ElementType::Bf16 => extend(raw, out, |b| bf16::from_le_bytes(b).to_f32()),
            _ => false,
        }
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for f64 {
    const KIND: &'static str = "floating-point numbers";

    fn decode(dtype: ElementType, raw: &[u8], out: &mut Vec<Self>) -> bool {
        match dtype {
            ElementType::F64 => extend(raw, out, f64::from_le_bytes),
            ElementType::F32 => extend(raw, out, |b| f32::from_le_bytes(b).into()),
            ElementType::F16 => extend(raw, out, |b| f16::from_le_bytes(b).to_f64()),
            ElementType::Bf16 => extend(raw, out, |b| bf16::from_le_bytes(b).to_f64()),
            _ => false,
        }
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for i64 {
    const KIND: &'static str = "integers";

    fn decode(dtype: ElementType, raw: &[u8], out: &mut Vec<Self>) -> bool {
        match dtype {
            ElementType::I64 => extend(raw, out, i64::from_le_bytes),
            ElementType::I32 => extend(raw, out, |b| i32::from_le_bytes(b).into()),
            ElementType::I16 => extend(raw, out, |b| i16::from_le_bytes(b).into()),
            ElementType::I8 => extend(raw, out, |b| i8::from_le_bytes(b).into()),
            ElementType::U8 => extend(raw, out, |[b]| b.into()),
            ElementType::Bool => extend(raw, out, |[b]| (b != 0).into()),
            _ => false,
        }
    }

    fn is_finite(self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize], strides: &[usize], storage: Range<usize>, offset: usize) -> Result<TensorInfo, String> {
        TensorInfo::new("t", ElementType::F32, shape.to_vec(), strides.to_vec(), storage, offset)
    }

    fn floats(count: usize) -> Vec<u8> {
        (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn strides_are_followed() {
        let file = floats(12);
        let read = |tensor: &TensorInfo, flat| {
            let mut out: Vec<f32> = Vec::new();
            tensor.read(&file, flat, &mut out).unwrap();
            out
        };
        let plain = view(&[2, 3], &[3, 1], 8..48, 1).unwrap();
        assert!(plain.is_contiguous());
        assert_eq!(read(&plain, 0..6), [3., 4., 5., 6., 7., 8.]);
        assert_eq!(read(&plain, 2..4), [5., 6.]);
        let transposed = view(&[3, 2], &[1, 3], 0..48, 2).unwrap();
        assert!(!transposed.is_contiguous());
        assert_eq!(read(&transposed, 0..6), [2., 5., 3., 6., 4., 7.]);
        assert_eq!(read(&transposed, 3..5), [6., 4.]);
        assert_eq!(transposed.span(0..6), 8..32);
        let scalar = view(&[], &[], 0..48, 11).unwrap();
        assert_eq!(read(&scalar, 0..1), [11.]);
        let empty = view(&[0, 5], &[usize::MAX, 3], 0..48, usize::MAX).unwrap();
        assert!(read(&empty, 0..0).is_empty());
        let thin = view(&[1, 4], &[999, 1], 0..16, 0).unwrap();
        assert!(thin.is_contiguous());
    }

    #[test]
    fn views_that_leave_their_storage_are_refused() {
        let huge = usize::MAX;
        for (shape, strides, offset, expected) in [
            (vec![13], vec![1], 0, "its storage holds 12"),
            (vec![12], vec![1], 1, "reaches outside"),
            (vec![2], vec![12], 0, "reaches outside"),
            (vec![2], vec![huge], 1, "reaches outside"),
            (vec![3], vec![huge / 2 + 1], 0, "reaches outside"),
            (vec![1], vec![1], huge, "reaches outside"),
            (vec![huge, huge], vec![1, 1], 0, "too large"),
            (vec![huge, huge, 0], vec![1, 1, 1], 0, "too large"),
            (vec![1 << 40], vec![0], 0, "its storage holds 12"),
            (vec![2, 2], vec![1], 0, "strides"),
            (vec![1; 9], vec![1; 9], 0, "dimensions"),
        ] {
            let error = view(&shape, &strides, 0..48, offset).unwrap_err();
            assert!(error.contains(expected), "{shape:?} {strides:?}: {error}");
        }
    }

    #[test]
    fn every_float_type_converts() {
        let mut file = 1.5f64.to_le_bytes().to_vec();
        file.extend(1.5f32.to_le_bytes());
        file.extend(f16::from_f32(1.5).to_le_bytes());
        file.extend(bf16::from_f32(1.5).to_le_bytes());
        for (dtype, at) in
            [(ElementType::F64, 0), (ElementType::F32, 8), (ElementType::F16, 12), (ElementType::Bf16, 14)]
        {
            let tensor = TensorInfo::new("t", dtype, vec![1], vec![1], at..at + dtype.size(), 0).unwrap();
            let (mut single, mut double) = (Vec::<f32>::new(), Vec::<f64>::new());
            tensor.read(&file, 0..1, &mut single).unwrap();
            tensor.read(&file, 0..1, &mut double).unwrap();
            assert_eq!((single[0], double[0]), (1.5, 1.5), "{dtype}");
            let error = tensor.read(&file, 0..1, &mut Vec::<i64>::new()).unwrap_err();
            assert!(error.contains("cannot be read as integers"), "{error}");
        }
    }
}
