//! An endpoint that vanishes without a word, in a network namespace of the test's own.
