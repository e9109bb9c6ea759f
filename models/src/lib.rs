//! semisep.
