"""Tasks on sequences, trees and images: one file a structure."""
