//! Never a wrong endpoint, and fair shares among the right ones.
