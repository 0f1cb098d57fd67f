//! A coordinator and joined agents on hosts of the testbed.
