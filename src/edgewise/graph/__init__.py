"""What a network is: its operators, its channel groups, and the surgery that removes channels."""

from edgewise.graph.groups import Graph, Group, Member, trace
from edgewise.graph.surgery import rigid_groups, shrink, silence

__all__ = ["Graph", "Group", "Member", "rigid_groups", "shrink", "silence", "trace"]
