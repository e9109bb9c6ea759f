//! Hyena and StripedHyena: gated long convolutions.
//!
//! | kind | filter | memory | module |
//! |---|---|---|---|
//! | `hyena` | a small network of the position, windowed (Poli et al. 2023) | all inputs so far | [`Hyena`] |
//! | `stripedhyena` | a sum of decaying complex exponentials (Poli et al. 2023b) | one number a mode | [`StripedHyena`] |
//!
//! [`Hyena::distill`] turns the first into the second's form, with the error that this makes.

mod cache;
mod distill;
mod hyena;
mod modal;
mod pieces;
mod striped;

pub use distill::{Distillation, DistilledHyena};
pub use hyena::{Hyena, HyenaConfig};
pub use striped::{StripedHyena, StripedHyenaConfig};
