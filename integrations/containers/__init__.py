"""Samples as bytes: pictures, tar archives, Arrow and Parquet tables; each a function of a `Batch`."""
