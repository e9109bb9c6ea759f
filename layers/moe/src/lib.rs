//! The mixture-of-experts channel mixer.
