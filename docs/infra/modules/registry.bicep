// The images. Nobody has a password for it.
param location string
param name string
param pullerId string
param pusherId string

var acrPull = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '7f951dda-4ed3-4680-a7ca-43fe172d538d')
var acrPush = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '8311e382-0749-4cb8-b61a-304f252e45ec')

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' = {
  name: name
  location: location
  sku: {
    name: 'Standard'
  }
  properties: {
    adminUserEnabled: false
    anonymousPullEnabled: false
  }
}

resource mayPull 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(registry.id, pullerId, acrPull)
  scope: registry
  properties: {
    principalId: pullerId
    principalType: 'ServicePrincipal'
    roleDefinitionId: acrPull
  }
}

resource mayPush 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(registry.id, pusherId, acrPush)
  scope: registry
  properties: {
    principalId: pusherId
    principalType: 'ServicePrincipal'
    roleDefinitionId: acrPush
  }
}

output name string = registry.name
