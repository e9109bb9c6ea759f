//! The Kolmogorov-Arnold channel mixer.
