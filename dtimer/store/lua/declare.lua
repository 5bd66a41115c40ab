-- Declare schedules, as every process does when it starts: one schedule, or all schedules of an
-- owner. A version that is higher than the recorded one also removes the schedules that the owner
-- does not declare any more. A lower version changes nothing.
--
-- Kind      once
-- Uses      types session wake events schedule retime declare owners
--
-- Arguments
--   owner           of the schedules (parts/owners.lua); '' for schedules without an owner
--   version         of the owner: whole numbers joined by '.'
--   definitions...  of the schedules, in the form of parts/declare.lua
--
-- Returns   one of these texts:
--           done;<outcomes>;<removed>  a letter for each definition, n new, c changed, s same; then
--           '<length>:<name>' of each schedule that was removed
--           lower;<version>  nothing was done, because this version of the owner is recorded
--           behind;<n>;<µs>  nothing was done. No nominal time in the list of definition n is after
--           the last claimed one, which is <µs>: the caller must send later times
local done, stale = recall()
if stale then return stale end
if done then return done end
local wrong = check_types(DUE, BODY, LEASE, TRIES, DEAD, DIED, SYS, DEFINITIONS, TEMPLATES, STATES,
  ROSTER, EXPECTED)
if wrong then return wrong end

local record, record_text, higher
if owner ~= '' then
  record, record_text = read_owner(owner)
  local order = compare_versions(version, record.version)
  if record.version ~= '' and order < 0 then
    local result = 'lower;' .. record.version
    remember(result)
    return result
  end
  higher = record.version ~= '' and order > 0
end
local list = read_definitions(definitions)
for i, d in ipairs(list) do
  local last = is_behind(d)
  if last then return 'behind;' .. i .. ';' .. last end
end

local outcomes, removed, declared = {}, {}, {}
for i, d in ipairs(list) do
  local old = record and record.removed[d.schedule]
  if old and old.till <= NOW then old = nil end
  outcomes[i] = string.sub(declare(d, owner, old), 1, 1)
  declared[d.schedule] = true
end
if record then
  local names = {}
  for _, name in ipairs(record.declared) do
    local state = not declared[name] and schedules().read_state(name)
    -- Another owner may have declared the schedule since.
    if state and state.owner == owner then
      if higher then
        schedules().forget(name, state)
        removed[#removed + 1] = #name .. ':' .. name
        if state.paused ~= '' or state.left ~= '' then
          record.removed[name] = {
            till = NOW + REMEMBERED, paused = state.paused, left = state.left, print = state.print,
          }
        end
      else
        names[#names + 1] = name
      end
    end
  end
  for name, old in pairs(record.removed) do
    if declared[name] or old.till <= NOW then record.removed[name] = nil end
  end
  for _, d in ipairs(list) do names[#names + 1] = d.schedule end
  table.sort(names)
  record.declared, record.version = names, version
  write_owner(owner, record, record_text)
end
local earliest = first_due()
if earliest then wake_next(earliest, 0) end
local result = 'done;' .. table.concat(outcomes) .. ';' .. table.concat(removed)
remember(result)
return result
