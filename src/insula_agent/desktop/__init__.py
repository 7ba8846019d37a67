"""Applications of this qube: their desktop entries, the list the host asks for, starting one."""
