//! The RG-LRU recurrent block.
