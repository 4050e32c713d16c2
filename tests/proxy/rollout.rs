//! Rolling updates of real processes under load.
