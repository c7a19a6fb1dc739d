//! What an op asks of a kernel: element types, layout, sizes.

/// Element types and layout that a kernel is compiled for: the macros that every kernel sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Types {
    /// Activations are bf16.
    pub act: bool,
    /// The left operand is bf16.
    pub a: bool,
    /// The right operand is bf16.
    pub b: bool,
    /// The result is bf16.
    pub y: bool,
    /// Which operands of a product are transposed.
    pub layout: Layout,
}

/// Which operands of a product `y (m, n) = a b` are stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `a (m, k)`, `b (k, n)`
    Nn = 0,
    /// `a (m, k)`, `b (n, k)`
    Nt = 1,
    /// `a (k, m)`, `b (k, n)`
    Tn = 2,
}

impl Types {
    /// Everything is f32.
    pub const F32: Types = Types { act: false, a: false, b: false, y: false, layout: Layout::Nn };

    /// Activations of the device's type.
    pub const fn act(bf16: bool) -> Self {
        Types { act: bf16, ..Types::F32 }
    }

    /// A product.
    pub const fn product(layout: Layout, a: bool, b: bool, y: bool) -> Self {
        Types { act: y, a, b, y, layout }
    }

    /// What follows a product, which made a result of this type.
    pub const fn finish(y: bool) -> Self {
        Types::product(Layout::Nn, false, false, y)
    }

    /// From one type to another.
    pub const fn convert(x: bool, y: bool) -> Self {
        Types { act: x, a: x, b: false, y, layout: Layout::Nn }
    }

    /// As macros.
    pub fn defines(self) -> [(&'static str, u32); 6] {
        let Types { act, a, b, y, layout } = self;
        [
            ("ACT_BF16", act.into()),
            ("A_BF16", a.into()),
            ("B_BF16", b.into()),
            ("X_BF16", a.into()),
            ("Y_BF16", y.into()),
            ("LAYOUT", layout as u32),
        ]
    }
}

/// Which element types the ops of a device ask of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// f32 alone.
    Real,
    /// Activations.
    Act,
    /// Activations, or the residual stream, which is f32.
    Stream,
    /// From activations or the stream to activations.
    Norm,
    /// Tables, in f32 or that of the head, to activations or the stream.
    Embed,
    /// Gradients of activations or the stream that are added up in f32 or in the activations' type.
    Scatter,
    /// From f32 to the activations' type.
    Cast,
    /// Results of products, in f32 and in the activations' type.
    Finish,
    /// Products.
    Product,
    /// Products of activations.
    ActProduct,
}

impl Uses {
    /// All of them, on a device that computes in bf16 or not.
    pub fn types(self, bf16: bool) -> Vec<Types> {
        let all = match self {
            Uses::Real => vec![Types::F32],
            Uses::Act => vec![Types::act(bf16)],
            Uses::Stream => vec![Types::act(bf16), Types::F32],
            Uses::Norm => vec![Types::convert(bf16, bf16), Types::convert(false, bf16)],
            Uses::Embed => {
                let from = |x| [Types::convert(x, false), Types::convert(x, bf16)];
                from(false).into_iter().chain(from(bf16)).collect()
            }
            Uses::Scatter => {
                vec![Types::convert(bf16, false), Types::convert(bf16, bf16), Types::convert(false, false)]
            }
            Uses::Cast => vec![Types::convert(false, bf16)],
            Uses::Finish => [false, bf16].map(Types::finish).into(),
            Uses::ActProduct => vec![Types::product(Layout::Nn, bf16, bf16, bf16)],
            Uses::Product => {
                let f32 = [Layout::Nn, Layout::Nt, Layout::Tn].map(|l| Types::product(l, false, false, false));
                let bf16 = [
                    Types::product(Layout::Nn, bf16, bf16, bf16),
                    Types::product(Layout::Nn, bf16, bf16, false),
                    Types::product(Layout::Nt, bf16, bf16, bf16),
                    Types::product(Layout::Nt, bf16, bf16, false),
                    Types::product(Layout::Tn, bf16, bf16, false),
                ];
                f32.into_iter().chain(bf16).collect()
            }
        };
        let mut unique = Vec::new();
        for types in all {
            if !unique.contains(&types) {
                unique.push(types);
            }
        }
        unique
    }
}

/// What an op is asked to do, as far as the choice of a kernel and its blocks depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// Element types.
    pub types: Types,
    /// Rows of the result; of attention, the longest span.
    pub rows: usize,
    /// Columns of the result; of attention, the width of a head.
    pub cols: usize,
    /// The inner size of a product; of attention, heads; of a cast, columns of what is read; of rows that are added to
    /// those of a table, its rows.
    pub depth: usize,
    /// Rows of the batch.
    pub batch: usize,
    /// Of attention over a cache, tokens that a slot can hold.
    pub keys: usize,
    /// Of a product, elements from row to row of the left operand as it is stored.
    pub stride: usize,
}

impl Problem {
    /// A pass over a matrix.
    pub fn matrix(types: Types, rows: usize, cols: usize) -> Self {
        Problem { types, rows, cols, depth: 1, batch: 1, keys: 0, stride: 0 }
    }

    /// A pass over elements that have no rows.
    pub fn flat(types: Types, len: usize) -> Self {
        Problem::matrix(types, 1, len)
    }
}
