-- Serve one claim of a node: settle the events it has finished, lease it due events, and say when
-- it should claim again. To do so, the script decides which node is on duty for the next event.
--
-- Kind      once
-- Roles     node
-- Uses      types session wake events judge replay schedule settle
--
-- Arguments
--   node            its incarnation
--   limit           number: how many events its free handler threads can start; 0 claims nothing
--   lease           number: lease length in µs
--   flags           '' or, in this order, any of
--     h             the node can hear wakes
--     l             the node lags: its waits end late, so other nodes are preferred for duty
--     e             publish an echo to the node
--     <number>      how many times this claim was sent before
--     ,<bytes>      for a slow connection: how many bytes of bodies to return at most, 1000000 if
--                   not given. The first event is returned even if it is larger
--     !             a strict claim: skip every event that is larger than that limit
--     p             return how many events were ever posted
--   heard           `heard` in the reply to this node's last claim: the time of that claim. '' if
--                   the node does not know it
--   ahead           number: look-ahead in µs: events that fall due within it are claimed too, and
--                   the node keeps them until they are due
--   confirms        number: how many events are confirmed
--   others          number: how many events are settled in other ways
--   settlements...  these events, in the format of parts/settle.lua
--
-- Returns   '<head>|<claim>...<text>...', one string, because a client spends as much on each
--           element of a reply as on the payload of an event
--   head    'now;wait;known;results;heard;before;posted;<claims>;<buried>;<short>'
--   claim   '<token>,<attempt>,<due>,<length of id>,<length of body>|<id><body>' for each
--           leased event
--   text    '<length>:<text>': id and reason of each event that was buried, then each schedule
--           that has only few nominal times left
-- where
--   wait    µs until the node should claim again; -1 if it should wait for a wake or its poll
--   known   1 if the node is registered; 0 if it must register again, also because the
--           namespace has the schema of another version
--   results one character per settled event, in order (parts/settle.lua)
--   heard   the server's time of this claim, for the argument `heard` of this node's next claim
--   before  '' if the server had recorded the time in the argument `heard`, or if that is ''. Else
--           the time that it had recorded, 0 for none
--   posted  how many events were ever posted; '' if not requested
--   claims, buried, short  how many of each follow

-- The default limit of bytes, how many events a strict claim may skip, and the last bucket of the
-- histogram of lateness.
local MOST_BYTES, MOST_SKIPPED, LATEST = 1000000, 100, 80

-- The argument `flags`: `resends` is how many times this claim was sent before.
local hears, lags, wants_echo, wants_total, resends = flags == 'h', false, false, false, 0
local most_bytes, strict = MOST_BYTES, false
if not hears and flags ~= '' then
  hears = string.find(flags, 'h', 1, true)
  lags = string.find(flags, 'l', 1, true) ~= nil
  wants_echo = string.find(flags, 'e', 1, true)
  wants_total = string.find(flags, 'p', 1, true)
  resends = tonumber(string.match(flags, '^%a*(%d+)') or 0)
  if #flags > 3 then
    most_bytes = tonumber(string.match(flags, ',(%d+)') or most_bytes)
    strict = string.find(flags, '!', 1, true)
    -- A strict claim keeps a limit above the default until it has chosen its events.
    if not strict then most_bytes = math.min(most_bytes, MOST_BYTES) end
  end
end

-- When the settlements are done: their results, and the value of `before` in the reply.
local settled, settled_before

-- The types of the keys are not checked first. Each key is read, or receives a harmless write,
-- before any event is claimed, so a wrong type makes the claim fail in time. Settlements made
-- before such a failure are remembered. DEAD, DIED, TEMPLATES and STATES are checked when they are
-- needed, which is rare.
--
-- The loader puts the text of a section in the place of its line. The sections share the locals of
-- this function. Functions with tables in place of shared locals would make a claim slower by an
-- eighth.
local function claim()
  local done, stale = recall()
  if stale then return stale end
  local answer = done and replay_claim(done, node, lease, flags, heard)
  if answer then return answer end

  --- @section claim/presence
  --- @section claim/settlements
  --- @section claim/candidates

  -- The reply and its numbers: events claimed, of these before they are due, and events left until
  -- they are due. `buried` has id and reason of each, `short` has schedules.
  local reply, claimed, claimed_early, not_yet = {''}, 0, 0, 0
  local buried, short = {}, {}
  -- The ids of the events that were considered; and the ids to remember for this claim, each with
  -- its length, because an id that dtimer has not written may contain any byte.
  local ids, remembered, first_token = {}, {}, 0
  -- `trouble` is an error reply if a key that an event needs has the wrong type. `occurred` is true
  -- once an occurrence was claimed, moved or dropped.
  local trouble, occurred = nil, false
  if #candidates > 0 then
    --- @section claim/bodies
    --- @section claim/grant
    --- @section claim/lease
  end
  if trouble and not busy and claimed == 0 then return trouble end

  --- @section claim/roster
  --- @section claim/wait
  --- @section claim/reply
end

-- Remember the results of the settlements if the script fails after them. When the node sends this
-- claim again, the reply has the results. The node's next claim then fails with the error.
local function failed()
  if settled then
    remember(table.concat({settled, settled_before, digits(resends), '0', '0', ''}, ';'))
  end
end

return run_checked(claim, failed)
