//! The mLSTM layer of xLSTM for semisep.
