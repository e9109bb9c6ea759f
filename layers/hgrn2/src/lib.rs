//! The HGRN2 layer of semisep: gated linear recurrence with an expanded state.
