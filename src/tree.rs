//! Parameter trees: one definition of a layer serves prepared weights, names and shapes, and whatever else has one
//! value per parameter.
//!
//! [`tree!`](crate::tree!) defines a struct over [`Leaves`] and the two ways to go through it: `try_map` makes the same
//! tree of other leaves, `visit` and `visit_mut` list the leaves in order.

/// What the leaves of a tree are. Implemented for pairs: `Params<(M, V)>` has matrices `M` and vectors `V`.
pub trait Leaves {
    /// At a matrix of parameters.
    type Matrix;
    /// At a vector of parameters.
    type Vector;
}

impl<M, V> Leaves for (M, V) {
    type Matrix = M;
    type Vector = V;
}

/// Defines a parameter struct. A field is a `matrix`, a `vector`, another tree in parentheses after `node`, or a list
/// of these: `matrices`, `vectors`, `nodes`.
#[macro_export]
macro_rules! tree {
    (@type $k:ident matrix) => { $k::Matrix };
    (@type $k:ident vector) => { $k::Vector };
    (@type $k:ident matrices) => { Vec<$k::Matrix> };
    (@type $k:ident vectors) => { Vec<$k::Vector> };
    (@type $k:ident node $sub:ident) => { $sub<$k> };
    (@type $k:ident nodes $sub:ident) => { Vec<$sub<$k>> };
    (@map $f:expr, $fm:ident $fv:ident matrix) => { $fm($f)? };
    (@map $f:expr, $fm:ident $fv:ident vector) => { $fv($f)? };
    (@map $f:expr, $fm:ident $fv:ident matrices) => { $f.iter().map(&mut *$fm).collect::<Result<Vec<_>, E>>()? };
    (@map $f:expr, $fm:ident $fv:ident vectors) => { $f.iter().map(&mut *$fv).collect::<Result<Vec<_>, E>>()? };
    (@map $f:expr, $fm:ident $fv:ident node) => { $f.try_map($fm, $fv)? };
    (@map $f:expr, $fm:ident $fv:ident nodes) => {
        $f.iter().map(|node| node.try_map($fm, $fv)).collect::<Result<Vec<_>, E>>()?
    };
    (@visit $f:expr, $fm:ident $fv:ident matrix) => { $fm($f) };
    (@visit $f:expr, $fm:ident $fv:ident vector) => { $fv($f) };
    (@visit $f:expr, $fm:ident $fv:ident matrices) => { $f.iter().for_each(&mut *$fm) };
    (@visit $f:expr, $fm:ident $fv:ident vectors) => { $f.iter().for_each(&mut *$fv) };
    (@visit $f:expr, $fm:ident $fv:ident node) => { $f.visit($fm, $fv) };
    (@visit $f:expr, $fm:ident $fv:ident nodes) => { $f.iter().for_each(|node| node.visit($fm, $fv)) };
    (@visit_mut $f:expr, $fm:ident $fv:ident matrix) => { $fm($f) };
    (@visit_mut $f:expr, $fm:ident $fv:ident vector) => { $fv($f) };
    (@visit_mut $f:expr, $fm:ident $fv:ident matrices) => { $f.iter_mut().for_each(&mut *$fm) };
    (@visit_mut $f:expr, $fm:ident $fv:ident vectors) => { $f.iter_mut().for_each(&mut *$fv) };
    (@visit_mut $f:expr, $fm:ident $fv:ident node) => { $f.visit_mut($fm, $fv) };
    (@visit_mut $f:expr, $fm:ident $fv:ident nodes) => { $f.iter_mut().for_each(|node| node.visit_mut($fm, $fv)) };
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $kind:ident $(($sub:ident))?),* $(,)?
        }
    ) => {
        $(#[$meta])*
        pub struct $name<K: $crate::tree::Leaves> {
            $($(#[$field_meta])* pub $field: $crate::tree!(@type K $kind $($sub)?),)*
        }

        impl<K: $crate::tree::Leaves> $name<K> {
            /// The same tree with every leaf replaced; stops at the first error.
            ///
            /// # Errors
            /// What `matrix` or `vector` returned.
            pub fn try_map<'a, M, V, E>(
                &'a self,
                matrix: &mut dyn FnMut(&'a K::Matrix) -> Result<M, E>,
                vector: &mut dyn FnMut(&'a K::Vector) -> Result<V, E>,
            ) -> Result<$name<(M, V)>, E> {
                let _ = (&matrix, &vector); // a tree may have leaves of one kind only
                Ok($name { $($field: $crate::tree!(@map &self.$field, matrix vector $kind),)* })
            }

            /// Calls `matrix` or `vector` for every leaf, in the order of the definition.
            pub fn visit<'a>(
                &'a self,
                matrix: &mut dyn FnMut(&'a K::Matrix),
                vector: &mut dyn FnMut(&'a K::Vector),
            ) {
                let _ = (&matrix, &vector);
                $($crate::tree!(@visit &self.$field, matrix vector $kind);)*
            }

            /// As [`visit`](Self::visit), to change the leaves.
            pub fn visit_mut<'a>(
                &'a mut self,
                matrix: &mut dyn FnMut(&'a mut K::Matrix),
                vector: &mut dyn FnMut(&'a mut K::Vector),
            ) {
                let _ = (&matrix, &vector);
                $($crate::tree!(@visit_mut &mut self.$field, matrix vector $kind);)*
            }
        }
    };
}
