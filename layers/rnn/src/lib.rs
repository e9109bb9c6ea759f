//! The LSTM, GRU and minimal recurrent layers.
