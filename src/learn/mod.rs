//! A model that learns: master weights, gradients and AdamW's averages beside the weights as the device wants them.

use std::cell::RefCell;

use crate::backend::{AdamW, Backend, Parameter};
use crate::error::Result;
use crate::model::gradient::{Batch, Losses, Objective, Pass};
use crate::model::params::Spec;
use crate::model::{Config, Model, Params, Plain, Read};

/// One value for each value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The parameter itself.
    Weight,
    /// AdamW's average of the gradient.
    Mean,
    /// AdamW's average of the squared gradient.
    Square,
    /// The gradient that was accumulated.
    Gradient,
}

/// Settings of an update, the same for all parameters.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Learning rate.
    pub lr: f64,
    /// Decay of AdamW's averages.
    pub betas: (f64, f64),
    /// AdamW's ε.
    pub epsilon: f64,
    /// Weight decay of each parameter, in the order of [`Params::list`].
    pub decay: &'a [f64],
    /// The largest norm of the gradient; longer ones are shortened to it. 0 for none.
    pub clip: f64,
}

/// Parameters of one matrix or vector.
struct Slot<B: Backend> {
    /// A matrix's values as stored; a vector's are those that the model uses.
    master: Option<B::Real>,
    mean: B::Real,
    square: B::Real,
}

/// A model with what it takes to train it.
pub struct Learner<B: Backend> {
    model: Model<B>,
    specs: Vec<Spec>,
    slots: Vec<Slot<B>>,
    grads: Params<Plain<B>>,
    pass: Pass<B>,
    updates: u64,
}

/// A parameter as the model holds it.
enum Leaf<'a, W, R> {
    Matrix(&'a mut W),
    Vector(&'a mut R),
}

impl<B: Backend> Learner<B> {
    /// Reads every parameter as [`Model::load`] does, without gradient and averages so far.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn new<'a>(backend: B, config: Config, read: &Read<'a>) -> Result<Self> {
        let tree = config.specs();
        let specs: Vec<Spec> = tree.list().into_iter().cloned().collect();
        let model = Model::load(backend, config, read)?;
        let backend = &model.backend;
        let slot = |spec: &Spec| {
            Ok(Slot {
                master: spec.role.map(|_| backend.real_from(&read(spec, Vec::new())?)).transpose()?,
                mean: backend.real(spec.len())?,
                square: backend.real(spec.len())?,
            })
        };
        let slots = specs.iter().map(slot).collect::<Result<_>>()?;
        let grads = tree.try_map(&mut |s| backend.real(s.len()), &mut |s| backend.real(s.len()))?;
        let pass = Pass::new(backend, &model.config.dims, 0, 0)?;
        Ok(Learner { specs, slots, grads, pass, updates: 0, model })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Goes on counting from `updates`, as a resumed run does.
    pub fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// The losses of `batch`, whose gradient is added to what was accumulated since the last update.
    ///
    /// # Errors
    /// As [`Model::losses_and_gradient`].
    pub fn accumulate(&mut self, batch: &Batch<'_>, objective: &Objective) -> Result<Losses> {
        let losses = self.model.losses_and_gradient(&mut self.pass, &mut self.grads, batch, objective)?;
        self.model.backend.status().map(|()| losses)
    }

    /// `L` of `(R, Z)`: the posterior means of the last batch, which had `rows` rows.
    pub fn posterior_means(&self, rows: usize) -> Vec<Vec<f32>> {
        self.pass.posterior_means(&self.model.backend, &self.model.config.dims, rows)
    }

    /// The 2-norm of the accumulated gradient.
    pub fn gradient_norm(&self) -> f64 {
        let gradients = RefCell::new(Vec::new());
        self.grads.visit(&mut |g| gradients.borrow_mut().push(g), &mut |g| gradients.borrow_mut().push(g));
        let lengths = self.specs.iter().map(Spec::len);
        let parts: Vec<_> = gradients.into_inner().into_iter().zip(lengths).collect();
        self.model.backend.sum_squares(&parts).sqrt()
    }

    /// One AdamW step along the accumulated gradient, whose norm is `norm`; the gradient is zero afterwards.
    ///
    /// # Panics
    /// If there is not one decay for each parameter.
    pub fn update(&mut self, update: &Update<'_>, norm: f64) {
        let Learner { model, specs, slots, grads, updates, .. } = self;
        assert_eq!(update.decay.len(), specs.len(), "a decay for each parameter");
        *updates += 1;
        let factor = if update.clip > 0.0 { (update.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let &Update { lr, betas, epsilon, .. } = update;
        let step = AdamW { lr, betas, epsilon, decay: 0.0, factor, step: *updates };
        let of_each = specs.iter().zip(slots).zip(update.decay).zip(leaves(&mut model.params)).zip(plain(grads));
        let mut parameters: Vec<_> = of_each
            .map(|((((spec, slot), &decay), leaf), gradient)| {
                let Slot { master, mean, square } = slot;
                let (values, matrix) = match (leaf, master, spec.role) {
                    (Leaf::Matrix(weight), Some(master), Some(role)) => (master, Some((weight, role))),
                    (Leaf::Vector(vector), ..) => (vector, None),
                    (Leaf::Matrix(_), ..) => unreachable!("a matrix has a role and a master"),
                };
                Parameter { values, matrix, mean, square, gradient, decay, len: spec.len() }
            })
            .collect();
        model.backend.adamw_all(&mut parameters, &step);
    }

    /// Forgets the accumulated gradient.
    pub fn forget(&mut self) {
        for (spec, gradient) in self.specs.iter().zip(plain(&mut self.grads)) {
            self.model.backend.zero_real(gradient, spec.len());
        }
    }

    /// Reads a part of parameter `index` of [`Params::list`].
    ///
    /// # Panics
    /// If there is no such parameter, or `values` is longer.
    pub fn read<F: crate::backend::HostFloat>(&mut self, part: Part, index: usize, values: &mut [F]) {
        let Learner { model, slots, grads, .. } = self;
        let slot = &slots[index];
        let buffer = match part {
            Part::Mean => &slot.mean,
            Part::Square => &slot.square,
            Part::Gradient => &*plain(grads).swap_remove(index),
            Part::Weight => match (&slot.master, leaves(&mut model.params).swap_remove(index)) {
                (Some(master), _) => master,
                (None, Leaf::Vector(vector)) => &*vector,
                (None, Leaf::Matrix(_)) => unreachable!("a matrix has a master"),
            },
        };
        model.backend.read_real(values, buffer);
    }

    /// Writes a part of parameter `index` of [`Params::list`].
    ///
    /// # Panics
    /// If there is no such parameter, or it has not as many values.
    pub fn write(&mut self, part: Part, index: usize, values: &[f32]) {
        let Learner { model, specs, slots, grads, .. } = self;
        assert_eq!(values.len(), specs[index].len(), "{}", specs[index].name);
        let (backend, slot) = (&model.backend, &mut slots[index]);
        match part {
            Part::Mean => backend.write_real(&mut slot.mean, values),
            Part::Square => backend.write_real(&mut slot.square, values),
            Part::Gradient => backend.write_real(plain(grads).swap_remove(index), values),
            Part::Weight => match (&mut slot.master, leaves(&mut model.params).swap_remove(index)) {
                (Some(master), Leaf::Matrix(weight)) => {
                    backend.write_real(master, values);
                    backend.refresh(weight, master, specs[index].role.expect("a matrix has a role"));
                }
                (_, Leaf::Vector(vector)) => backend.write_real(vector, values),
                (None, Leaf::Matrix(_)) => unreachable!("a matrix has a master"),
            },
        }
    }
}

/// The parameters in the order of [`Params::list`].
fn leaves<W, R>(params: &mut Params<(W, R)>) -> Vec<Leaf<'_, W, R>> {
    let list = RefCell::new(Vec::new());
    params.visit_mut(&mut |matrix| list.borrow_mut().push(Leaf::Matrix(matrix)), &mut |vector| {
        list.borrow_mut().push(Leaf::Vector(vector))
    });
    list.into_inner()
}

/// The gradients in the order of [`Params::list`].
fn plain<R>(grads: &mut Params<(R, R)>) -> Vec<&mut R> {
    let list = RefCell::new(Vec::new());
    grads.visit_mut(&mut |g| list.borrow_mut().push(g), &mut |g| list.borrow_mut().push(g));
    list.into_inner()
}
