"""What a network is: its operators, its channel groups, and the surgery that removes channels."""

from edgewise.graph.groups import Graph, Group, Member, trace
from edgewise.graph.rigid import rigid_groups
from edgewise.graph.surgery import shrink, silence

__all__ = ["Graph", "Group", "Member", "rigid_groups", "shrink", "silence", "trace"]
