"""The fifteen tasks of *Neural Networks and the Chomsky Hierarchy* (Delétang et al., ICLR 2023)."""
